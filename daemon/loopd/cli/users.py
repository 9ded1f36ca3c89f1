"""users: owns `loopctl user`: who may log in, with which role and password."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import BaseModel, SecretStr

from loopd.api.schema import UserView
from loopd.cli import complete
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.tokens import check_name
from loopd.cli.words import ago
from loopd.principal import Role

app = typer.Typer(help="Add, list, change and remove users.", no_args_is_help=True)

MOST_CHARACTERS = 256
LEAST_CHARACTERS = 12


class RemovedView(BaseModel):
    """Who is gone, for --json."""

    removed: str


Name = Annotated[
    str,
    typer.Argument(metavar="USER", help="The user's name.", callback=check_name, autocompletion=complete.users),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input, not from a prompt.")
]


def read_password(*, from_stdin: bool) -> SecretStr:
    """Return a new password, asked for twice on a terminal. Raises BadParameter."""
    if from_stdin:
        text = sys.stdin.readline(4 * MOST_CHARACTERS).rstrip("\r\n")
    elif sys.stdin.isatty():
        text = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        raise typer.BadParameter("there is no terminal to ask for the password; give it with --password-stdin")
    if not LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
        raise typer.BadParameter(f"a password has {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters")
    return SecretStr(text)


@app.command()
def add(
    name: Name,
    *,
    role: Annotated[Role, typer.Option("--role", help="What the user may do.")] = Role.USER,
    password_stdin: FromStdin = False,
    json: Json = False,
) -> None:
    """Add a user, who logs in with a password at /auth/login."""
    from loopd.api.schema import AddUserRequest  # noqa: PLC0415 takes longer than --help may

    request = AddUserRequest(name=name, role=role, password=read_password(from_stdin=password_stdin))
    with open_client() as client:
        _show(client.add_user(request), json=json)


@app.command("list")
def list_users(*, json: Json = False) -> None:
    """List users."""
    screen = open_screen()
    with open_client() as client:
        found = client.users()
    if json:
        screen.json(found)
        return
    if not found.users:
        screen.line("no user yet: `loopctl user add NAME` adds one, `loopctl token issue` serves programs")
        return
    now = datetime.now(UTC)
    rows = tuple(
        (
            Cell(user.name),
            Cell(user.role),
            Cell("disabled", "off") if user.disabled else Cell("enabled", "good"),
            Cell(ago(user.changed_at, now)),
        )
        for user in found.users
    )
    screen.show([Sheet(("USER", "ROLE", "STATE", "CHANGED"), rows)])


@app.command("role")
def set_role(name: Name, role: Annotated[Role, typer.Argument(help="The new role.")], *, json: Json = False) -> None:
    """Give a user another role; it ends the user's tokens."""
    _change(name, role=role, json=json)


@app.command("password")
def set_password(name: Name, *, password_stdin: FromStdin = False, json: Json = False) -> None:
    """Give a user another password; it ends the user's tokens."""
    _change(name, password=read_password(from_stdin=password_stdin), json=json)


@app.command()
def disable(
    name: Name,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Let the user in again.")] = False,
    json: Json = False,
) -> None:
    """Let a user in no longer; it ends the user's tokens."""
    _change(name, disabled=not undo, json=json)


@app.command()
def remove(name: Name, *, json: Json = False) -> None:
    """Remove a user with all tokens."""
    screen = open_screen()
    with open_client() as client:
        client.remove_user(name)
    if json:
        screen.json(RemovedView(removed=name))
    else:
        screen.line(f"{name} is removed, and every token of {name} has ended", "good")


def _change(
    name: str,
    *,
    role: Role | None = None,
    password: SecretStr | None = None,
    disabled: bool | None = None,
    json: bool,
) -> None:
    from loopd.api.schema import ChangeUserRequest  # noqa: PLC0415 takes longer than --help may

    with open_client() as client:
        _show(client.change_user(name, ChangeUserRequest(role=role, password=password, disabled=disabled)), json=json)


def _show(user: UserView, *, json: bool) -> None:
    screen = open_screen()
    if json:
        screen.json(user)
    else:
        state = "may not log in" if user.disabled else "may log in"
        screen.line(f"{user.name} has the role {user.role} and {state}", "good")
