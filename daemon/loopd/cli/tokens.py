"""tokens: owns `loopctl token`: making tokens for programs, listing and revoking them, rotating the keys that sign."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from loopd.cli import complete
from loopd.cli.screen import Cell, Sheet, open_screen
from loopd.cli.session import open_client
from loopd.cli.settings import token_file
from loopd.cli.words import ago, clock, count, span
from loopd.principal import LOCAL, Role, is_user

app = typer.Typer(
    help="Make, list and revoke tokens; rotate the keys; find the control API's token.", no_args_is_help=True
)
app.command("path")(token_file)

Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]

_TTL = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LEAST_S, MOST_S = 60, 366 * 86400


def check_name(text: str) -> str:
    """Refuse what can be no user's name or token's id."""
    if not is_user(text):
        raise typer.BadParameter("1 to 64 of A-Za-z0-9._@-, with no dot first")
    return text


def seconds(text: str) -> int:
    """Return a length of time in seconds: 90d, 12h, 30m, 600s. Raises BadParameter."""
    found = _TTL.fullmatch(text)
    value = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not LEAST_S <= value <= MOST_S:
        raise typer.BadParameter("a life is 90d, 12h, 30m or 600s: from a minute to 366 days")
    return value


@app.command()
def issue(
    *,
    user: Annotated[str, typer.Option("--user", help="Who it stands for.", callback=check_name)] = LOCAL,
    role: Annotated[Role, typer.Option("--role", help="What it may do.")] = Role.USER,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it lives: 90d, 12h, 30m.")] = "90d",
    name: Annotated[str, typer.Option("--name", help="What it is for, to find it again.")] = "",
    json: Json = False,
) -> None:
    """Make a token for a program and write it to standard output; it is shown this once."""
    from loopd.api.schema import IssueRequest  # noqa: PLC0415 takes longer than --help may

    screen = open_screen()
    life = seconds(ttl)
    if not re.fullmatch(r"[A-Za-z0-9 ._@/-]{0,80}", name):
        raise typer.BadParameter("a token's name has at most 80 of letters, digits, space and ._@/-")
    with open_client() as client:
        view = client.issue(IssueRequest(user=user, role=role, ttl_s=life, name=name))
    if json:
        screen.json(view)
        return
    screen.write(f"{view.token}\n")
    screen.remark(f"token {view.jti} of {view.user} ({view.role}) ends {clock(view.expires_at)}")


@app.command("list")
def list_tokens(*, json: Json = False) -> None:
    """List tokens that live, newest first."""
    screen = open_screen()
    with open_client() as client:
        found = client.tokens()
    if json:
        screen.json(found)
        return
    if not found.tokens:
        screen.line("no token lives: `loopctl token issue` makes one, `loopctl user add` lets somebody log in")
        return
    now = datetime.now(UTC)
    rows = tuple(
        (
            Cell(t.jti),
            Cell(t.kind),
            Cell(t.user),
            Cell(t.role),
            Cell(t.name or "-"),
            Cell(ago(t.issued_at, now)),
            Cell(f"in {span((t.expires_at - now).total_seconds())}"),
            Cell(t.family if t.kind != "service" else "-"),
        )
        for t in found.tokens
    )
    screen.show([Sheet(("TOKEN", "KIND", "USER", "ROLE", "NAME", "MADE", "ENDS", "LOGIN"), rows)])


@app.command()
def revoke(
    token: Annotated[
        str | None,
        typer.Argument(help="Its id; one of a login ends the login.", metavar="TOKEN", autocompletion=complete.tokens),
    ] = None,
    *,
    login: Annotated[str | None, typer.Option("--login", help="Revoke all of this login.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Revoke all of this user.")] = None,
    json: Json = False,
) -> None:
    """Revoke a token, a login, or everything of a user: the gateway refuses it from the next request on."""
    from loopd.api.schema import RevokeRequest  # noqa: PLC0415 takes longer than --help may

    kinds: tuple[tuple[Literal["token", "login", "user"], str | None], ...] = (
        ("token", token),
        ("login", login),
        ("user", user),
    )
    given = [(kind, value) for kind, value in kinds if value is not None]
    if len(given) != 1:
        raise typer.BadParameter("name one token, or one --login, or one --user")
    kind, value = given[0]
    screen = open_screen()
    with open_client() as client:
        told = client.revoke(RevokeRequest(of=kind, id=check_name(value)))
    if json:
        screen.json(told)
    else:
        screen.line(f"revoked: {count(told.tokens, 'token', 'tokens')}", "good")
    if not told.in_force:
        screen.remark("the gateway does not answer: it learns of it as soon as it does. `loopctl why gateway`")


@app.command()
def rotate(
    *,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="End every token at once: the old key may be in other hands.")
    ] = False,
    json: Json = False,
) -> None:
    """Sign with a new key; tokens of the old one go on until they end."""
    from loopd.api.schema import RotateRequest  # noqa: PLC0415 takes longer than --help may

    screen = open_screen()
    with open_client() as client:
        view = client.rotate(RotateRequest(revoke=revoke))
    if json:
        screen.json(view)
    else:
        screen.line(f"{view.kid} signs from now on; {count(view.verifying, 'key verifies', 'keys verify')}", "good")
