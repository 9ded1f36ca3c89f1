"""Run inside the trainer's image: the loss and gradients of packed conversations beside those of each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from loopbox_trainer.base_model import Numbers, open_model
from loopbox_trainer.chat_format import IGNORED
from loopbox_trainer.examples import Example
from loopbox_trainer.packing import pack
from loopbox_trainer.sft import collate

model: Any = open_model(Path("/models/tiny.gguf"), Numbers("cpu", torch.float32, nf4=False))  # Any: no types here
watched = model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
prefix = tuple(range(40, 60))
examples = [
    Example(prefix, tuple(range(n, n + 12)), (IGNORED,) * 5 + tuple(range(n + 5, n + 12))) for n in (65, 80, 97, 70)
]


def losses(longest: int) -> tuple[float, Any]:
    """Return the summed loss, and the gradient."""
    watched.grad = None
    total = 0.0
    for one in pack(examples, longest=longest, seed=1):
        batch = collate([one])
        labels = batch.pop("labels")[:, 1:]
        scores = model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss.backward()
        total += float(loss)
    return total, watched.grad.clone()


alone, gradient_alone = losses(32)
packed, gradient_packed = losses(900)
difference = float((gradient_alone - gradient_packed).abs().max())
print(json.dumps({"alone": alone, "packed": packed, "gradient_difference": [difference]}))  # noqa: T201 - its answer
