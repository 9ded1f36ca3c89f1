"""Run inside the trainer's image: the same rows by a bare trl script; its last line is one JSON object."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from loopbox_trainer.base_model import choose_numbers, open_model, open_tokenizer
from loopbox_trainer.chat_format import IGNORED
from loopbox_trainer.examples import read_examples
from loopbox_trainer.spec import TrainSpec

spec = TrainSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
torch.set_num_threads(spec.machine.threads)
base = Path(spec.base)
tokenizer: Any = open_tokenizer(base)  # Any: no types here
numbers = choose_numbers(spec.machine, 0)
examples = read_examples([Path(spec.train[0])], tokenizer, longest=spec.steps.tokens, most=spec.most_rows).examples
rows = [
    {
        "input_ids": [*one.prefix, *one.body],
        "completion_mask": [0] * len(one.prefix) + [int(label != IGNORED) for label in one.labels],
    }
    for one in examples
]
trainer = SFTTrainer(
    model=open_model(base, numbers),
    args=SFTConfig(
        output_dir="/tmp/bare",  # noqa: S108 - inside the container
        per_device_train_batch_size=4,
        num_train_epochs=1,
        learning_rate=spec.steps.learning_rate,
        bf16=numbers.dtype is torch.bfloat16,
        use_cpu=numbers.device == "cpu",
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=spec.steps.tokens,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=spec.lora.r, lora_alpha=int(spec.lora.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
    ),
)
started, processor = time.monotonic(), time.process_time()
trainer.train()
seconds = time.monotonic() - started
told = {
    "rows": len(rows),
    "seconds": seconds,
    "cpu_seconds": time.process_time() - processor,
    "steps": trainer.state.global_step,
    "tokens": sum(len(row["input_ids"]) for row in rows),
    "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}
print(json.dumps(told))
