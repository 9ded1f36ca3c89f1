from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType as Kind

from loopbox_trainer.quantise import kind_of


@pytest.mark.parametrize(
    ("name", "shape", "block", "expected"),
    [
        ("blk.0.attn_norm.weight", [512], 0, (Kind.F32, False)),
        ("blk.9.attn_q.weight", [512, 512], 9, (Kind.Q4_K, False)),
        ("blk.9.attn_q.weight", [576, 576], 9, (Kind.Q5_0, True)),  # 576 is no multiple of 256
        ("blk.0.ffn_down.weight", [1536, 576], 0, (Kind.Q6_K, False)),
        ("blk.4.ffn_down.weight", [1536, 576], 4, (Kind.Q4_K, False)),
        ("blk.0.attn_v.weight", [576, 192], 0, (Kind.Q8_0, True)),
        ("token_embd.weight", [576, 49152], 0, (Kind.Q8_0, True)),
        ("blk.0.attn_q.weight", [40, 40], 0, (Kind.F16, True)),  # nor of 32
    ],
)
def test_a_tensor_gets_the_kind_of_the_mixture_or_its_fall_back(
    name: str, shape: list[int], block: int, expected: tuple[Kind, bool]
) -> None:
    assert kind_of(name, shape, "Q4_K_M", block, 30, tied=True) == expected


def test_a_head_of_its_own_is_finer_than_the_embeddings() -> None:
    assert kind_of("output.weight", [512, 9], "Q4_K_M", 0, 4, tied=False) == (Kind.Q6_K, False)
    assert kind_of("token_embd.weight", [512, 9], "Q4_K_M", 0, 4, tied=False) == (Kind.Q4_K, False)
