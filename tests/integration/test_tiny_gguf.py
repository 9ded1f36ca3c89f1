"""The tiny model and the chat templates, in the real engine: it loads, talks, obeys a schema, and renders."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import docker
import httpx
import pytest

from built import built
from loopd.gguf import inspect
from loopd.template import chat_format
from tiny_gguf import make_tiny_gguf

pytestmark = pytest.mark.docker
IMAGE: Final = built().ollama
STARTED_S: Final = 30.0
Message = dict[str, object]

SYSTEM: Message = {"role": "system", "content": "Be brief."}
HI: Message = {"role": "user", "content": "Hi"}
HELLO: Message = {"role": "assistant", "content": "Hello."}
SUM: Message = {"role": "user", "content": "2+2?"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
}
RESULT: Message = {"role": "tool", "tool_name": "add", "content": "4"}
PARAMETERS: Final[dict[str, object]] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL: Final[dict[str, object]] = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": PARAMETERS},
}

#: By family: a model's template that shows its markers, the whole chat as it must read, and its form of a call.
RENDERED: Final[dict[str, tuple[str, str, str]]] = {
    "chatml": (
        "<|im_start|>",
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "Hello.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        ),
        (
            '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a":2}}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    "llama3": (
        "<|start_header_id|>",
        (
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        (
            '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "add", "parameters": {"a":2}}<|eot_id|>'
            "<|start_header_id|>ipython<|end_header_id|>\n\n4<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "gemma": (
        "<start_of_turn>",
        (
            "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
        ),
        (
            '<start_of_turn>model\n{"name": "add", "parameters": {"a":2}}<end_of_turn>\n<start_of_turn>user\n'
            "The function answered: 4<end_of_turn>\n<start_of_turn>model\n"
        ),
    ),
    "mistral": (
        "[INST]",
        "[INST] Be brief.\n\nHi[/INST] Hello.</s>[INST] 2+2?[/INST]",
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a":2}}]</s>[TOOL_RESULTS] {"content": "4"}[/TOOL_RESULTS]',
    ),
    "llama2": (
        "[INST] <<SYS>>",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] 2+2? [/INST]",
        '{"name": "add", "parameters": {"a":2}} </s><s>[INST] The function answered: 4 [/INST]',
    ),
    "phi3": (
        "<|assistant|><|end|>",
        (
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\n2+2?<|end|>\n"
            "<|assistant|>\n"
        ),
        (
            '<|assistant|>\n{"name": "add", "parameters": {"a":2}}<|end|>\n<|user|>\nThe function answered: 4<|end|>\n'
            "<|assistant|>\n"
        ),
    ),
    "phi4": (
        "<|im_start|><|im_sep|>",
        (
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
            "<|im_start|>assistant<|im_sep|>Hello.<|im_end|><|im_start|>user<|im_sep|>2+2?<|im_end|>"
            "<|im_start|>assistant<|im_sep|>"
        ),
        (
            '<|im_start|>assistant<|im_sep|>{"name": "add", "parameters": {"a":2}}<|im_end|><|im_start|>user<|im_sep|>'
            "The function answered: 4<|im_end|><|im_start|>assistant<|im_sep|>"
        ),
    ),
    "zephyr": (
        "<|assistant|>",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\n2+2?</s>\n<|assistant|>\n",
        (
            '<|assistant|>\n{"name": "add", "parameters": {"a":2}}</s>\n<|user|>\nThe function answered: 4</s>\n'
            "<|assistant|>\n"
        ),
    ),
    "plain": (
        "none of them",
        "system: Be brief.\n\nuser: Hi\n\nassistant: Hello.\n\nuser: 2+2?\n\nassistant: ",
        'assistant: {"name": "add", "parameters": {"a":2}}\n\nuser: The function answered: 4\n\nassistant: ',
    ),
}

#: Thinking models write the same, until a request asks for thoughts or forbids them.
RENDERED["chatml-thinking"] = ("<|im_start|> enable_thinking", *RENDERED["chatml"][1:])


class Ollama:
    """A thin client of the engine's own API."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)

    # Any: the engine's answers are JSON whose shape each test asserts.
    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, name: str, gguf: Path, jinja: str | None = None) -> None:
        """Make a model of a file as a release does: its blob, the family's template and stop texts."""
        content = gguf.read_bytes()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.http.post(f"/api/blobs/{digest}", content=content).raise_for_status()
        summary = inspect(gguf)
        chat = chat_format(jinja or summary.chat_template, eos_text=None if jinja else summary.eos_text)
        parameters = {"stop": list(chat.stop), "num_thread": 1, "num_ctx": 1024}
        self.post(
            "/api/create",
            {
                "model": name,
                "files": {"model.gguf": digest},
                "template": chat.template,
                "parameters": parameters,
                "stream": False,
            },
        )


@pytest.fixture(scope="module")
def ollama() -> Iterator[Ollama]:
    """One real engine for this file, on a free port of the loopback."""
    client = docker.from_env()
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        pytest.fail(f"image {IMAGE} is missing: run `make images`")
    container = client.containers.run(
        IMAGE,
        detach=True,
        environment={"OLLAMA_MODELS": "/tmp/models", "OLLAMA_HOST": "0.0.0.0:11434"},
        tmpfs={"/tmp": "mode=1777"},
        ports={"11434/tcp": ("127.0.0.1", 0)},
        labels={"loopbox.test": "tiny-gguf"},
    )
    try:
        engine = Ollama(_address(container))
        with engine.http:
            yield engine
    finally:
        container.remove(force=True)
        client.close()


def _address(container: Any) -> str:  # Any: the SDK's stubs leave attrs untyped
    deadline = time.monotonic() + STARTED_S
    while time.monotonic() < deadline:
        container.reload()
        ports = container.attrs["NetworkSettings"]["Ports"].get("11434/tcp")
        if ports:
            address = f"http://127.0.0.1:{ports[0]['HostPort']}"
            try:
                httpx.get(f"{address}/api/version", timeout=1, trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.05)  # a port that does not answer yet gives nothing to wait on
            else:
                return address
    raise AssertionError(f"the engine did not answer in {STARTED_S} s: {container.logs().decode()[-2000:]}")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_tiny_model_talks_and_does_not_repeat_itself(ollama: Ollama, tmp_path: Path, seed: int) -> None:
    """Guards golden prompts against tiny models that look dead: one token over and over, or no answer at all."""
    ollama.create(f"tiny-{seed}", make_tiny_gguf(tmp_path / "tiny.gguf", seed=seed))
    ask = {
        "model": f"tiny-{seed}",
        "stream": False,
        "options": {"temperature": 0, "num_predict": 64},
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    first = ollama.post("/api/chat", ask)["message"]["content"]
    assert len(first) >= 16
    assert len(set(first)) >= 10
    assert first.isprintable()
    assert first.isascii()
    assert ollama.post("/api/chat", ask)["message"]["content"] == first


def test_seeds_give_other_files_and_other_answers(ollama: Ollama, tmp_path: Path) -> None:
    """Guards swap tests: they tell releases apart by what they answer."""
    answers = set()
    digests = set()
    for seed in range(3):
        path = make_tiny_gguf(tmp_path / f"{seed}.gguf", seed=seed, layers=2 + seed)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        ollama.create(f"seed-{seed}", path)
        body = {"model": f"seed-{seed}", "prompt": "Hi", "stream": False}
        options = {"temperature": 0, "num_predict": 24}
        answers.add(ollama.post("/api/generate", {**body, "options": options})["response"])
    assert len(digests) == len(answers) == 3


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Guards tests that name a release by its digest."""
    one, two = (make_tiny_gguf(tmp_path / name, seed=7).read_bytes() for name in ("a.gguf", "b.gguf"))
    assert one == two


def test_a_schema_is_obeyed(ollama: Ollama, tmp_path: Path) -> None:
    """Guards forced tools: even a random model must fill the arguments under the schema."""
    ollama.create("schema", make_tiny_gguf(tmp_path / "tiny.gguf", seed=5))
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 999, "minimum": 0}, "ok": {"type": "boolean"}},
        "required": ["a", "ok"],
    }
    body = {"model": "schema", "stream": False, "format": schema, "options": {"temperature": 0, "num_predict": 256}}
    content = ollama.post("/api/chat", {**body, "messages": [HI]})["message"]["content"]
    answer = json.loads(content)
    assert set(answer) == {"a", "ok"}
    assert isinstance(answer["a"], int)
    assert isinstance(answer["ok"], bool)


@pytest.mark.parametrize("family", RENDERED)
def test_a_chat_is_rendered_in_the_form_of_its_family(ollama: Ollama, tmp_path: Path, family: str) -> None:
    """Guards against gibberish from a template that is near the model's own, but not it; also tools and calls."""
    jinja, chat, call = RENDERED[family]
    ollama.create(family, make_tiny_gguf(tmp_path / "tiny.gguf"), jinja)
    body = {"model": family, "stream": False, "_debug_render_only": True}

    def rendered(messages: list[Message], tools: list[dict[str, object]]) -> str:
        answer = ollama.post("/api/chat", {**body, "messages": messages, "tools": tools})
        text: str = answer["_debug_info"]["rendered_template"]
        return text

    assert rendered([SYSTEM, HI, HELLO, SUM], []) == chat
    offered = rendered([SYSTEM, SUM], [TOOL])
    assert '"name":"add"' in offered
    assert "nil" not in offered
    assert rendered([SYSTEM, SUM, CALL, RESULT], [TOOL]).endswith(call)
    assert rendered([HI, {"role": "assistant", "content": "The"}], []).endswith("The")
