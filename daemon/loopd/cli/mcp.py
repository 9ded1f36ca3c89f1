"""mcp: owns `loopctl mcp`: MCP servers of one's own, whose tools the agent may call."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from loopd.cli import complete
from loopd.cli.agent_views import GoneView, ServerView
from loopd.cli.exits import ExitCode
from loopd.cli.screen import Block, Cell, Mood, Sheet, open_screen
from loopd.cli.session import open_agent

app = typer.Typer(help="List, add, remove and test MCP servers whose tools the agent may call.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MOODS: dict[str, Mood] = {"ready": "good", "unused": "off", "idle": "off", "connecting": "busy"}


def check_server(text: str) -> str:
    """Refuse what can be no server's name."""
    if not _NAME.fullmatch(text):
        raise typer.BadParameter("a server's name has 1 to 32 of a-z0-9_-, and begins with a letter or digit")
    return text


def read_headers(given: list[str]) -> dict[str, str]:
    """Return headers with the names of their secrets. Raises BadParameter."""
    headers: dict[str, str] = {}
    for text in given:
        header, equals, secret = text.partition("=")
        if not (header and equals and secret):
            raise typer.BadParameter("a header is HEADER=SECRETNAME: the name of a secret's file, never the secret")
        headers[header] = secret
    return headers


Name = Annotated[str, typer.Argument(help="The server's name.", callback=check_server, autocompletion=complete.servers)]


@app.command("list")
def list_servers(*, json: Json = False) -> None:
    """List the MCP servers of loopctl's own user."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.servers()
    if json:
        screen.json(found)
    elif found.servers:
        screen.show([sheet(found.servers)])
    else:
        screen.line("no MCP server: `loopctl mcp add NAME URL` adds one")


@app.command()
def add(  # noqa: PLR0913 each is an option
    name: Name,
    url: Annotated[str, typer.Argument(help="Where it serves streamable HTTP.")],
    *,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="HEADER=SECRETNAME",
            help="Send this header; its value is in the file of that name in the secrets directory. May be repeated.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="GLOB", help="Only tools of these names; may be repeated.")
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option("--deny", metavar="GLOB", help="No tool of these names; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Add an MCP server, or change the one by that name. It is asked nothing before `loopctl mcp test`, or a run."""
    screen = open_screen()
    wanted: dict[str, object] = {"headers": read_headers(header or []), "allow": allow, "deny": deny}
    with open_agent() as agent:
        view = agent.add_server({"name": name, "url": url, **{key: value for key, value in wanted.items() if value}})
    if json:
        screen.json(view)
    else:
        screen.line(f"{name} is added; `loopctl mcp test {name}` asks it for its tools", "good")


@app.command()
def remove(name: Name, *, json: Json = False) -> None:
    """Remove an MCP server; `add` brings it back."""
    screen = open_screen()
    with open_agent() as agent:
        agent.remove_server(name)
    if json:
        screen.json(GoneView(removed=name))
    else:
        screen.line(f"{name} is removed", "good")


@app.command("test")
def try_server(name: Name, *, json: Json = False) -> None:
    """Ask an MCP server for its tools; exits 0 when it answers, else 1."""
    screen = open_screen()
    with open_agent() as agent:
        found = agent.test_server(name)
    if json:
        screen.json(found)
    else:
        made: list[Block] = [Cell(f"{name} is {found.state}", "bad" if found.error else "good")]
        made += [Cell(found.error, "bad")] if found.error else []
        made += [Cell(f"offers {tool}") for tool in found.tools]
        made += [Cell(f"{tool.name} is not taken: {tool.reason}", "off") for tool in found.refused]
        screen.show(made)
    if found.error:
        raise typer.Exit(ExitCode.FAILED)


def sheet(views: list[ServerView]) -> Sheet:
    """Return the table of servers."""
    rows = [
        (
            Cell(view.name),
            Cell(view.state or "-", _MOODS.get(view.state, "bad" if view.error else "")),
            Cell(view.url),
            Cell(", ".join(view.allow) or "-"),
            Cell(", ".join(view.deny) or "-"),
            Cell(view.error or "-"),
        )
        for view in views
    ]
    return Sheet(("SERVER", "STATE", "URL", "ALLOWS", "DENIES", "ERROR"), tuple(rows))
