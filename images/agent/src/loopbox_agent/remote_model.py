"""remote_model: owns the models of OpenAI-style endpoints: their clients, the way out, and the key read from a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

from openai import AsyncOpenAI
from pydantic import SecretStr
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from loopbox_agent.egress_http import egress_client
from loopbox_agent.errors import AgentError
from loopbox_agent.pool_member import PoolMember

LONGEST_KEY: Final = 4096  # bytes
MOST_ANSWER: Final = 64 << 20  # bytes of one answer, as sent
SILENCE_S: Final = 120.0  # between two pieces of an answer


class KeyUnusableError(AgentError):
    """The file with an endpoint's key holds no key."""

    code: ClassVar[str] = "model_key"
    status: ClassVar[int] = 500


def read_key(path: Path) -> SecretStr:
    """Return the key in a file. Raises KeyUnusableError, which never shows what is in it."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_KEY + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnusableError(f"The key in {path} can't be read ({type(error).__name__}); write one line.") from None
    if not text or len(text) > LONGEST_KEY or not text.isprintable() or " " in text:
        raise KeyUnusableError(f"The key in {path} is empty, too long, or more than one word; write one line.")
    return SecretStr(text)


@asynccontextmanager
async def open_remotes(
    members: Sequence[PoolMember], native: Callable[[PoolMember], Model], *, silence_s: float = SILENCE_S
) -> AsyncIterator[Callable[[PoolMember], Model]]:
    """Yield what builds the model of any member: remote ones here, with clients that end with this; else ``native``.

    Raises KeyUnusableError; ValueError for a proxy that is none.
    """
    async with AsyncExitStack() as stack:
        made: dict[str, Model] = {}
        for member in members:
            if member.kind == "openai":
                made[member.name] = await _open(member, stack, silence_s)
        yield lambda member: made[member.name] if member.kind == "openai" else native(member)


async def _open(member: PoolMember, stack: AsyncExitStack, silence_s: float) -> Model:
    key = await asyncio.to_thread(read_key, member.api_key_file) if member.api_key_file else None
    http = await egress_client(member.proxy or None, timeout_s=silence_s, most_bytes=MOST_ANSWER)
    await stack.enter_async_context(http)
    client = AsyncOpenAI(
        base_url=str(member.url),
        api_key=key.get_secret_value() if key else "none",  # the client insists on one
        http_client=http,
        max_retries=0,  # the pool tries again, within the run's deadline
    )
    provider = OpenAICompatibleProvider(member.name, openai_client=client)
    return OpenAIChatModel(member.model, provider=provider)
