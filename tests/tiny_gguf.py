"""tiny_gguf: owns the making of tiny valid models: a random llama that the real engine loads and that talks back.

Two layers of width 64 in f32 with one token for each byte, 0.5 MB. Greedy output is lively, not one token repeated:
the output matrix is apart from the embedding and speaks printable ASCII and the end token only, scaled to 2.0 to 3.6
bits of entropy a token (of 6.6 possible); attention counts double, so each token depends on the whole context and the
text falls into no short cycle. Measured over 24 seeds and two prompts: no answer under 17 tokens, 40 of 48 over 300,
40 to 58 different characters in the long ones. Give num_predict: a tiny model seldom ends by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH: Final = 64
HEADS: Final = 4
FEED_FORWARD: Final = 128
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY: Final = 256 + len(SPECIAL)
END: Final = 258
CHATML: Final = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Matrix = NDArray[np.float32]


def byte_tokens() -> list[str]:
    """Return the 256 one-byte tokens in the spelling of byte-level vocabularies, by byte."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelled = iter(range(256))
    return [chr(byte) if byte in plain else chr(256 + next(spelled)) for byte in range(256)]


def tiny_weights(seed: int, *, layers: int = 2, vocabulary: int = VOCABULARY) -> dict[str, Matrix]:
    """Return the tensors by name; another seed gives other numbers throughout."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Matrix:
        return np.asarray(random.standard_normal((rows, columns)) * gain / columns**0.5, dtype=np.float32)

    output = np.zeros((vocabulary, WIDTH), dtype=np.float32)
    spoken = [*range(ord(" "), ord("~") + 1), END]
    output[spoken] = matrix(len(spoken), WIDTH, 3.0)
    output[END] *= 0.7
    tensors: dict[str, Matrix] = {
        "token_embd.weight": random.standard_normal((vocabulary, WIDTH)).astype(np.float32),
        "output.weight": output,
        "output_norm.weight": np.ones(WIDTH, dtype=np.float32),
    }
    for number in range(layers):
        tensors |= {
            f"blk.{number}.attn_norm.weight": np.ones(WIDTH, dtype=np.float32),
            f"blk.{number}.attn_q.weight": matrix(WIDTH, WIDTH, 2.0),
            f"blk.{number}.attn_k.weight": matrix(WIDTH, WIDTH, 2.0),
            f"blk.{number}.attn_v.weight": matrix(WIDTH, WIDTH, 2.0),
            f"blk.{number}.attn_output.weight": matrix(WIDTH, WIDTH, 2.0),
            f"blk.{number}.ffn_norm.weight": np.ones(WIDTH, dtype=np.float32),
            f"blk.{number}.ffn_gate.weight": matrix(FEED_FORWARD, WIDTH),
            f"blk.{number}.ffn_up.weight": matrix(FEED_FORWARD, WIDTH),
            f"blk.{number}.ffn_down.weight": matrix(WIDTH, FEED_FORWARD, 2.0),
        }
    return tensors


def make_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    name: str = "tiny",
    chat_template: str | None = CHATML,
    context_length: int = 2048,
    architecture: str = "llama",
    merges: bool = False,
) -> Path:
    """Write a tiny model to ``path`` and return it: 470 KB with two layers, and 164 KB for each one more.

    merges: has a token of two spaces; trainers insist that a merge makes a token, engines that there is a merge.
    """
    vocabulary = VOCABULARY + merges
    writer: Any = gguf.GGUFWriter(path, architecture)  # Any: gguf ships no types
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*byte_tokens(), *SPECIAL, *["ĠĠ"] * merges])
    writer.add_token_types([1] * 256 + [3] * len(SPECIAL) + [1] * merges)
    # The engine insists on merges; without one that is meant, this one can't apply: there is no token of two bytes.
    writer.add_token_merges(["Ġ Ġ" if merges else "Ā ā"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(256)
    writer.add_add_bos_token(value=False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for tensor, numbers in tiny_weights(seed, layers=layers, vocabulary=vocabulary).items():
        writer.add_tensor(tensor, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
