"""What a sound file says, how an unfinished one is told apart, and the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopd.gguf import GgufError, inspect, main
from tiny_gguf import CHATML, VOCABULARY, make_tiny_gguf

DAEMON = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


def code_of(path: Path) -> GgufError:
    with pytest.raises(GgufError) as caught:
        inspect(path)
    return caught.value


def test_a_sound_file_is_summed_up(tmp_path: Path) -> None:
    """Guards the fields that a release is made from."""
    path = make_tiny_gguf(tmp_path / "a.gguf", name="Tiny A", context_length=512, layers=3)
    summary = inspect(path)
    assert summary.name == "Tiny A"
    assert (summary.architecture, summary.block_count, summary.embedding_length) == ("llama", 3, 64)
    assert (summary.context_length, summary.vocab_size, summary.file_type) == (512, VOCABULARY, "F32")
    assert (summary.tokenizer_model, summary.tokenizer_pre) == ("gpt2", "smollm")
    assert (summary.bos_token_id, summary.eos_token_id, summary.eos_text) == (257, 258, "<|im_end|>")
    assert summary.chat_template == CHATML
    assert summary.size_bytes == path.stat().st_size


def test_a_file_without_a_chat_template_passes(tmp_path: Path) -> None:
    """Base models have none; the plain format serves them."""
    assert inspect(make_tiny_gguf(tmp_path / "a.gguf", chat_template=None)).chat_template is None


def test_version_2_is_read_like_version_3(tmp_path: Path, tiny: bytes) -> None:
    """Older converters wrote 2, with the same layout."""
    path = tmp_path / "two.gguf"
    path.write_bytes(tiny[:4] + b"\2" + tiny[5:])
    assert inspect(path).tensor_count == 21


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.005, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_called_truncated(tmp_path: Path, tiny: bytes, share: float) -> None:
    """A slow copy must wait, not be rejected: wherever the copy stands, the code is the same."""
    path = tmp_path / "half.gguf"
    path.write_bytes(tiny[: int(len(tiny) * share)])
    error = code_of(path)
    assert (error.code, error.unfinished) == ("truncated", True)
    assert error.actual_bytes == path.stat().st_size
    assert error.expected_bytes is not None
    assert error.actual_bytes < error.expected_bytes <= len(tiny)


def test_the_expected_size_is_exact_once_the_header_is_there(tmp_path: Path, tiny: bytes) -> None:
    """Guards the progress shown for a slow copy."""
    path = tmp_path / "half.gguf"
    path.write_bytes(tiny[:-1000])
    assert code_of(path).expected_bytes == len(tiny)


def test_every_prefix_of_the_header_is_truncated(tmp_path: Path, tiny: bytes) -> None:
    """Guards against a cut that reads as another defect, which would reject a file that is still arriving."""
    path = tmp_path / "prefix.gguf"
    for length in range(0, 8000, 61):
        path.write_bytes(tiny[:length])
        assert code_of(path).code == "truncated", length


def test_a_sparse_copy_is_called_truncated(tmp_path: Path, tiny: bytes) -> None:
    """A copier that sets the size first leaves a hole where bytes have not arrived."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(tiny[:100_000])
    os.truncate(path, len(tiny))
    error = code_of(path)
    assert error.code == "truncated"
    assert error.actual_bytes is not None
    assert 90_000 < error.actual_bytes < 110_000
    assert error.expected_bytes == len(tiny)


def test_a_sparse_copy_that_stands_in_the_header_is_called_truncated(tmp_path: Path, tiny: bytes) -> None:
    """The zeros of the hole would read as an empty key, and the file would be rejected while it arrives."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(tiny[:4096])
    os.truncate(path, len(tiny))
    assert code_of(path).code == "truncated"


def test_a_hole_in_the_middle_is_called_truncated(tmp_path: Path, tiny: bytes) -> None:
    """Parallel copiers fill a file from several places at once."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(tiny[:100_000])
        file.seek(300_000)
        file.write(tiny[300_000:])
    assert code_of(path).code == "truncated"


def test_a_file_of_zeros_is_called_truncated(tmp_path: Path) -> None:
    """Space reserved before the copy began."""
    path = tmp_path / "zeros.gguf"
    path.write_bytes(bytes(100_000))
    assert code_of(path).code == "truncated"


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A named pipe would hold a reader for ever."""
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert code_of(tmp_path / "pipe.gguf").code == "not_a_file"
    assert code_of(tmp_path / "folder.gguf").code == "not_a_file"
    assert code_of(tmp_path / "absent.gguf").code == "unreadable"


def test_the_command_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the contract with the inspection process: one JSON line, status 0, 65 or 64."""
    path = make_tiny_gguf(tmp_path / "a.gguf")
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["architecture"] == "llama"
    path.write_bytes(b"GGUF")
    assert main([str(path)]) == 65
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["expected_bytes"], error["actual_bytes"]) == ("truncated", 8, 4)
    assert main([]) == 64


def test_importing_the_parser_imports_nothing_heavy() -> None:
    """Guards the start of the disposable process: only the standard library, and of that the light part."""
    program = "import sys, loopd.gguf; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(DAEMON)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = set(done.stdout.split())
    assert names <= {*sys.stdlib_module_names, "loopd", "__main__"}
    assert not names & {"asyncio", "typing_extensions", "pydantic", "numpy", "email", "socket"}


def test_a_string_bomb_is_passed_in_bounded_time(tmp_path: Path) -> None:
    """The most strings that the limits allow, all empty: the worst case in time for a small file."""
    path = tmp_path / "bomb.gguf"
    count = 2_000_000
    head = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    key = b"tokenizer.ggml.tokens"
    head += len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
    path.write_bytes(head + count.to_bytes(8, "little") + bytes(count * 8 + 64))
    start = time.monotonic()
    code_of(path)
    assert time.monotonic() - start < 10
