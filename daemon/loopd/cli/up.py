"""up: owns `loopctl up`, `down`, `purge` and `images build`: the order of the steps, and what is said at the end.

Each step looks before it acts, so any of them may be broken off and run again.
"""

from __future__ import annotations

import sys
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from loopd.cli.exits import ExitCode
from loopd.cli.screen import open_screen
from loopd.cli.session import read_settings

# The parts that do the work are imported on the call: together they take longer than `--help` may.
if TYPE_CHECKING:
    from loopd.cli.host_parts import Host
    from loopd.cli.screen import Screen

BUILD_STEPS = 3
UP_STEPS = 9
DOWN_STEPS = 3
PURGE_STEPS = 7

images = typer.Typer(help="Build the images of this checkout.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("purge")(purge)
    app.add_typer(images, name="images")


def up() -> None:
    """Bring the appliance up: engine, images, model, loopd. What is there already is left alone."""
    from loopd.cli.host_parts import this_host  # noqa: PLC0415 see the top

    bring_up(this_host(read_settings()), open_screen())


def down() -> None:
    """Stop what `up` started; models, state and images stay."""
    from loopd.cli.host_parts import this_host  # noqa: PLC0415 see the top

    bring_down(this_host(read_settings()), open_screen())


def purge(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Leave the images: building takes minutes.")
    ] = False,
) -> None:
    """Stop everything and remove models, state, images and all else that `up` put on this host."""
    from loopd.cli.host_parts import this_host  # noqa: PLC0415 see the top

    host, screen = this_host(read_settings()), open_screen()
    if not yes and not confirmed(host, screen):
        screen.remark("nothing was removed")
        raise typer.Exit(ExitCode.USAGE)
    purge_all(host, screen, keep_images=keep_images)


@images.command()
def build(
    *,
    only: Annotated[str | None, typer.Option("--only", help="This one and what it stands on.")] = None,
    portable: Annotated[bool, typer.Option("--portable", help="For any processor, not only this one.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the tags by name as JSON.")] = False,
) -> None:
    """Build the images that are not on this host; changes no instance."""
    from loopd.cli.host_parts import this_host  # noqa: PLC0415 see the top

    build_images(this_host(read_settings()), open_screen(), only=only, portable=portable, json=json)


def bring_up(host: Host, screen: Screen) -> None:
    """Run the steps of `up`. Raises LoopdError at the first that fails."""
    from loopd.cli import host_checks, host_daemon, host_engine, host_files, host_images, host_model  # noqa: PLC0415 see the top
    from loopd.cli.host_parts import sole  # noqa: PLC0415 see the top
    from loopd.cli.host_progress import Progress  # noqa: PLC0415 see the top
    from loopd.cli.words import span  # noqa: PLC0415 see the top
    from loopd.images import plan_here  # noqa: PLC0415 see the top

    progress = Progress(screen, UP_STEPS)
    progress.step("checks", lambda _: host_checks.check(host))
    recipes = plan_here(host.places.repository, host.places.proc)
    with sole(host.settings.home):
        host_files.ensure_directories(host)
        progress.step("settings", lambda _: host_files.ensure_settings(host))
        progress.step("command", lambda _: host_files.ensure_link(host))
        progress.step("engine", lambda say: host_engine.ensure_engine(host, say))
        with host.open_engine() as engine:
            progress.step("base image", lambda say: host_images.ensure_base(host, engine, say))
            progress.step("images", lambda say: host_images.ensure_images(host, engine, recipes, say))
        progress.step("model", lambda say: host_model.ensure_model(host, say))
        progress.step("loopd", lambda say: host_daemon.ensure_loopd(host, say))
        progress.step("serving", lambda say: host_daemon.await_serving(host, say))
    screen.line(
        f"loopbox serves on http://127.0.0.1:{host.settings.public_port} after {span(progress.elapsed_s)}", "good"
    )
    screen.write("".join(f"  {line}\n" for line in host_files.next_commands(host)))


def bring_down(host: Host, screen: Screen) -> None:
    """Run the steps of `down`. Raises LoopdError at the first that fails."""
    from loopd.cli import host_daemon, host_engine  # noqa: PLC0415 see the top
    from loopd.cli.host_parts import sole  # noqa: PLC0415 see the top
    from loopd.cli.host_progress import Progress  # noqa: PLC0415 see the top

    if not host.settings.home.is_dir():
        screen.line(f"nothing to stop: there is no {host.settings.home}")
        return
    progress = Progress(screen, DOWN_STEPS)
    with sole(host.settings.home):
        progress.step("loopd", lambda _: host_daemon.stop_loopd(host))
        progress.step("containers", lambda _: host_engine.remove_containers(host))
        progress.step("engine", lambda _: host_engine.stop_engine(host))
    screen.line(f"stopped; models, state and settings stay in {host.settings.home}. `make up` starts again", "good")


def purge_all(host: Host, screen: Screen, *, keep_images: bool = False) -> None:
    """Run the steps of `purge`. Raises LoopdError at the first that fails; it may be run again."""
    from loopd.cli import host_daemon, host_engine, host_images, host_unit  # noqa: PLC0415 see the top
    from loopd.cli.host_files import remove_files  # noqa: PLC0415 see the top
    from loopd.cli.host_parts import sole  # noqa: PLC0415 see the top
    from loopd.cli.host_progress import Progress  # noqa: PLC0415 see the top

    home = host.settings.home
    if not home.is_dir():
        screen.line(f"nothing to remove: there is no {home}")
        return
    progress = Progress(screen, PURGE_STEPS)

    with sole(home):
        progress.step("loopd", lambda _: host_daemon.stop_loopd(host))
        progress.step("engine", lambda say: host_engine.find_engine(host, say))
        progress.step("containers", lambda _: host_engine.remove_containers(host))
        progress.step("images", lambda _: "kept" if keep_images else host_images.remove_images(host))
        progress.step("engine", lambda _: host_engine.stop_engine(host))
        progress.step("unit", lambda _: "removed" if host_unit.uninstall(host) else "there was none")
        progress.step("files", lambda _: remove_files(host))
    screen.line(f"removed; the virtual environment in {host.places.repository} and installed packages stay", "good")


def confirmed(host: Host, screen: Screen) -> bool:
    """Ask whether to purge; without a terminal the answer is no."""
    settings = host.settings
    if sys.stdin is None or not sys.stdin.isatty():
        screen.remark("purge asks first, and there is no terminal to ask on: repeat with --yes if you mean it")
        return False
    screen.write(
        f"This stops instance {settings.instance} and removes for good: every model and all state in {settings.home}, "
        f"its containers, and the images that no other instance uses.\nType {settings.instance} to go on: "
    )
    return sys.stdin.readline().strip().lower() in (settings.instance, "y", "yes")


def build_images(host: Host, screen: Screen, *, only: str | None, portable: bool, json: bool) -> None:
    """Build what is missing and say the tags. Raises LoopdError."""
    from loopd.cli import host_engine, host_images  # noqa: PLC0415 see the top
    from loopd.cli.host_parts import sole  # noqa: PLC0415 see the top
    from loopd.cli.host_progress import Aside, Progress  # noqa: PLC0415 see the top
    from loopd.images import NAMES, ON_DEMAND, plan_here  # noqa: PLC0415 see the top

    names = (only,) if only else tuple(name for name in NAMES if name not in ON_DEMAND)
    recipes = plan_here(host.places.repository, host.places.proc, names=names, portable=portable)
    progress = Progress(Aside(fancy=False, terminal=False) if json else screen, BUILD_STEPS)
    with sole(host.settings.home):
        progress.step("engine", lambda say: host_engine.ensure_engine(host, say))
        with host.open_engine() as engine:
            progress.step("base image", lambda say: host_images.ensure_base(host, engine, say))
            progress.step(
                "images", lambda say: host_images.tell(host_images.ensure_built(engine, recipes, say), recipes)
            )
    tags = {recipe.name: recipe.tag for recipe in recipes}
    screen.write(dumps(tags) + "\n" if json else "".join(f"{tag}\n" for tag in tags.values()))
