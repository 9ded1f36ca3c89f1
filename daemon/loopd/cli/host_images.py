"""host_images: owns bringing the images of this checkout onto the host."""

from __future__ import annotations

from loopd.cli.host_commands import Say
from loopd.cli.host_parts import ContainerHost, Host
from loopd.cli.words import count
from loopd.engine import EngineDownError
from loopd.host import HostError
from loopd.images import DEBIAN, ON_DEMAND, ImagesError, Recipe, image_set, load_images, save_images

BASE_S = 1800.0


def ensure_base(host: Host, engine: ContainerHost, say: Say) -> str:
    """Bring the Debian image that all others stand on: pulled, or made. Raises HostError."""
    if engine.has(DEBIAN):
        return f"{DEBIAN} is there"
    host.remember(host.started.model_copy(update={"base_made": True}))
    script = host.places.repository / "tools" / "base-image"
    named = {"DOCKER_HOST": host.settings.docker_host} if host.settings.docker_host else None
    outcome = host.commands.run((str(script),), timeout_s=BASE_S, say=say, env=named)
    if not outcome.good or not engine.has(DEBIAN):
        raise HostError(
            f"{DEBIAN} could not be pulled nor made ({outcome.code}):\n{outcome.tail}\n"
            "Mend that and repeat `make up`, or bring an image of that name yourself"
        )
    return f"{DEBIAN} made"


def ensure_built(engine: ContainerHost, recipes: tuple[Recipe, ...], say: Say) -> tuple[str, ...]:
    """Build what is missing, parents first; return the names built. Raises BuildError."""
    built = []
    for number, recipe in enumerate(recipes, 1):
        if engine.has(recipe.tag):
            continue
        title = f"{recipe.name} ({number} of {len(recipes)})"
        say(f"{title}: building")
        engine.build(recipe, _titled(say, title))
        built.append(recipe.name)
    return tuple(built)


def _titled(say: Say, title: str) -> Say:
    return lambda line: say(f"{title}: {line}")


def ensure_images(host: Host, engine: ContainerHost, recipes: tuple[Recipe, ...], say: Say) -> str:
    """Build what is missing and write which images loopd shall use. Raises BuildError, HostError.

    Those on demand are told, too, so that loopd knows them as soon as somebody has built them.
    """
    needed = tuple(recipe for recipe in recipes if recipe.name not in ON_DEMAND)
    built = ensure_built(engine, needed, say)
    wanted = image_set(recipes)
    try:
        known = load_images(host.settings.home) == wanted
    except ImagesError:
        known = False
    if not known:
        save_images(host.settings.home, wanted)
    return tell(built, needed)


def tell(built: tuple[str, ...], recipes: tuple[Recipe, ...]) -> str:
    """Say what was built."""
    return f"built {', '.join(built)}" if built else f"{count(len(recipes), 'image', 'images')}, all there"


def remove_images(host: Host) -> str:
    """Remove the images we built, and the Debian one if it came by us; those that others use are left."""
    try:
        with host.open_engine() as engine:
            swept = engine.remove_images((DEBIAN,) if host.started.base_made else ())
    except EngineDownError:
        return "left, if there are any: no engine answers"
    left = f"; left, since others use them: {', '.join(swept.kept)}" if swept.kept else ""
    return f"{len(swept.removed)} removed{left}"
