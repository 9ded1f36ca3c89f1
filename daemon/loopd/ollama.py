"""ollama: owns loopd's talk with an engine container: make the model, load it, ask it.

Not for traffic: that goes through the gateway and never through loopd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError

from loopd import golden
from loopd.errors import UnavailableError
from loopd.golden import Token
from loopd.release import Release

POLL_S = 0.02
ANSWER_BYTES = 4 << 20


class EngineAnswerError(UnavailableError):
    """The engine did not do what was asked; the text holds its own words."""

    code = "engine_failed"


class GoldenError(EngineAnswerError):
    """The candidate answered a golden prompt wrongly."""

    code = "golden_failed"


class _Logprob(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    token: str = ""
    logprob: float


class Generated(BaseModel):
    """An answer of /api/generate; durations in nanoseconds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    response: str = ""
    done: bool = False
    eval_count: int = 0  #: the engine leaves it out when it stops an answer that repeats one token
    eval_duration: int = 0
    load_duration: int = 0
    logprobs: tuple[_Logprob, ...] = ()

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The generated tokens, when they were asked for."""
        return tuple(Token(entry.token, entry.logprob) for entry in self.logprobs)

    @property
    def tokens_per_s(self) -> float:
        """Generation speed, 0.0 when nothing was generated."""
        return self.eval_count / (self.eval_duration / 1e9) if self.eval_duration else 0.0


class Ollama:
    """One engine container, by its address."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base = base_url

    async def wait_answering(self, *, timeout_s: float) -> None:
        """Return once the engine answers at all. Raises EngineAnswerError after ``timeout_s`` seconds."""
        with _deadline(timeout_s, "answer after its start"):
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with self._session.get(f"{self._base}/api/version") as response:
                            if response.status == 200:  # noqa: PLR2004
                                return
                    await asyncio.sleep(POLL_S)

    async def loaded(self, *, timeout_s: float) -> frozenset[str]:
        """Return the names, without tags, of the models in memory. No health check: it answers in a deadlock, too."""
        answer = await self._ask("GET", "/api/ps", None, timeout_s=timeout_s)
        models = answer.get("models")
        names = [m.get("name") for m in models if isinstance(m, dict)] if isinstance(models, list) else []
        return frozenset(name.split(":")[0] for name in names if isinstance(name, str))

    async def create(self, alias: str, release: Release, *, threads: int, timeout_s: float) -> None:
        """Make the model from the release's blob, which must lie in the engine's blob store already.

        threads: CPU threads of each generation, a matter of the host and so not of the release.
        """
        parameters: dict[str, Any] = {  # Any: the API's parameters are numbers and lists of strings
            "num_ctx": release.num_ctx,
            "num_thread": threads,
            "stop": list(release.stop),
            **dict(release.sampling),
        }
        body: dict[str, Any] = {  # Any: a JSON body
            "model": alias,
            "files": {"model.gguf": f"sha256:{release.gguf_sha256}"},
            "template": release.template,
            "parameters": parameters,
            "stream": False,
        }
        if release.adapters:
            body["adapters"] = {f"adapter-{n}.gguf": f"sha256:{one.sha256}" for n, one in enumerate(release.adapters)}
        if release.system:
            body["system"] = release.system
        answer = await self._ask("POST", "/api/create", body, timeout_s=timeout_s)
        if answer.get("status") != "success":
            raise EngineAnswerError(f"the engine could not make the model: {answer}")

    async def generate(
        self,
        alias: str,
        prompt: str,
        *,
        tokens: int,
        timeout_s: float,
        schema: dict[str, object] | None = None,
    ) -> Generated:
        """Generate greedily with a fixed seed; stays loaded. Raises EngineAnswerError."""
        body: dict[str, Any] = {  # Any: a JSON body
            "model": alias,
            "prompt": prompt,
            "stream": False,
            "keep_alive": -1,
            "logprobs": True,
            "options": {"num_predict": tokens, "temperature": 0, "seed": 1},
        }
        if schema is not None:
            body["format"] = schema
        answer = await self._ask("POST", "/api/generate", body, timeout_s=timeout_s)
        try:
            generated = Generated.model_validate(answer)
        except ValidationError as error:
            raise EngineAnswerError(f"the engine's answer has another form: {error.error_count()} faults") from error
        if not generated.done:
            raise EngineAnswerError("the engine ended an answer before it was done")
        return generated

    async def golden(self, alias: str, *, timeout_s: float) -> float:
        """Ask the golden prompts; return tokens a second. Raises GoldenError naming the one that failed."""
        speeds = [
            await self.golden_probe(alias, prompt, tokens=golden.TOKENS, timeout_s=timeout_s)
            for prompt in golden.PROMPTS
        ]
        bound = await self.generate(
            alias, golden.BOUND_PROMPT, tokens=golden.BOUND_TOKENS, timeout_s=timeout_s, schema=golden.SCHEMA
        )
        if fault := golden.judge_bound(bound.response):
            raise GoldenError(f"golden prompt {golden.BOUND_PROMPT!r}: {fault}")
        return max(speeds)

    async def golden_probe(self, alias: str, prompt: str, *, tokens: int, timeout_s: float) -> float:
        """Ask one golden prompt; return tokens a second. Raises GoldenError."""
        answer = await self.generate(alias, prompt, tokens=tokens, timeout_s=timeout_s)
        if fault := golden.judge(answer.response, answer.tokens):
            raise GoldenError(f"golden prompt {prompt!r}: {fault}; it answered {answer.response[:80]!r}")
        return answer.tokens_per_s

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None, *, timeout_s: float) -> dict[str, Any]:
        """Return the parsed answer. Any: JSON objects, taken apart by the callers."""
        with _deadline(timeout_s, f"end {path}"):
            try:
                async with (
                    asyncio.timeout(timeout_s),
                    self._session.request(method, f"{self._base}{path}", json=body) as response,
                ):
                    status = response.status
                    body_read = bytearray()
                    async for chunk in response.content.iter_chunked(64 << 10):
                        body_read += chunk
                        if len(body_read) > ANSWER_BYTES:
                            raise EngineAnswerError(f"the engine answered {path} with over {ANSWER_BYTES} bytes")
                    text = body_read.decode(errors="replace")
            except aiohttp.ClientError as error:
                raise EngineAnswerError(f"the engine broke off {path}: {error}") from error
        if status != 200:  # noqa: PLR2004
            raise EngineAnswerError(f"the engine answered {path} with {status}: {text[:500]}")
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise EngineAnswerError(f"the engine answered {path} with no JSON: {text[:200]!r}") from error
        if not isinstance(answer, dict):
            raise EngineAnswerError(f"the engine answered {path} with {text[:200]!r}")
        return answer


@contextlib.contextmanager
def _deadline(timeout_s: float, act: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineAnswerError(f"the engine did not {act} within {timeout_s:g} s") from error
