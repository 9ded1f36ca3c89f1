"""reference: owns docs/loopctl.md, made from the commands themselves so that page and program cannot differ.

Write it anew with ``python -m loopd.cli.reference > docs/loopctl.md``; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import cleandoc

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from loopd.cli.exits import MEANINGS
from loopd.cli.main import app

_HEAD = """\
# loopctl

The command line of the appliance. It speaks with loopd on its unix socket (as root), else on 127.0.0.1 with the
token of `loopctl token path`. `ask`, `runs`, `threads`, `memory`, `knowledge`, `tools`, `mcp`, `quarantine` and
`people` speak with the agent through the gateway, as any client does, with a token of minutes that loopd gives out:
they act as the user `local` with the role admin, and show what belongs to that user unless they say otherwise.

- On a terminal there are colours and live pictures; on a pipe, with `NO_COLOR` or `TERM=dumb`, plain lines.
- `--json` is everywhere where something is shown. Following commands write one object a line.
- Answers go to stdout, remarks and errors to stderr: `error: what happened, what to do next [code]`.
- `loopctl --install-completion` sets up completion for your shell, of ids and names, too.

```sh
loopctl status --watch
loopctl ask "What is the capital of France?"
git diff | loopctl ask - --system "Review this change." --max-tokens 300
loopctl ask "Plan a trip." --thread new --background   # then: loopctl runs watch ID
loopctl exec -- python3 -c "print(6*7)"
loopctl rollouts watch && echo promoted
loopctl events --follow --json | jq -r .event
loopctl why gateway
```

## Exit codes

| code | meaning |
|---|---|
"""

_TAIL = """
`loopctl exec` passes the command's own exit code through; a code of loopctl's own comes with a line on stderr that
begins with `error:`.
"""


def render() -> str:
    """Return the page."""
    codes = "".join(f"| {code.value} | {meaning} |\n" for code, meaning in MEANINGS.items())
    root = typer.main.get_command(app)
    return _HEAD + codes + _TAIL + "".join(_sections("loopctl", root))


def _sections(path: str, command: object) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name, member in command.commands.items():
            yield from _sections(f"{path} {name}", member)
    elif isinstance(command, TyperCommand) and not command.hidden:
        arguments = [p for p in command.params if isinstance(p, TyperArgument)]
        options = [p for p in command.params if isinstance(p, TyperOption) and not p.hidden]
        usage = " ".join([path, *(["[OPTIONS]"] if options else []), *(_name(a) for a in arguments)])
        yield f"\n## {path}\n\n```\n{usage}\n```\n\n{cleandoc(command.help or '')}\n"
        rows = [(_name(a), a.help or "") for a in arguments] + [(_flags(o), _meaning(o)) for o in options]
        if rows:
            yield "\n| | |\n|---|---|\n" + "".join(f"| `{left}` | {right} |\n" for left, right in rows)


def _name(argument: TyperArgument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _flags(option: TyperOption) -> str:
    flags = ", ".join([*option.opts, *option.secondary_opts])
    return flags if option.is_flag else f"{flags} {option.metavar or (option.name or '').upper()}"


def _meaning(option: TyperOption) -> str:
    default = option.default
    shown = "" if default in (None, "", False) or callable(default) else f" Default: {default}."
    if default is True:
        shown = f" Default: {option.opts[0]}."
    return f"{option.help or ''}{shown}"


if __name__ == "__main__":
    sys.stdout.write(render())
