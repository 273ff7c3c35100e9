"""Store the results of TRL's trainers on `fidelity.pairs`: `python -m prefrec_lab.fidelity_trl` writes trl.npz.

`python -m prefrec_lab.fidelity` compares ours with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from prefrec_lab.fidelity import (
    BETA,
    GAMMA,
    PAIRS,
    TRL_VECTORS,
    Arrays,
    gradients,
    lora,
    moved,
    pairs,
    problem,
    tokenizer,
)

COMMON: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any], tuple[str, ...]]] = {
    "dpo": (DPOTrainer, DPOConfig, {"beta": BETA, "max_length": None}, ("chosen", "rejected")),
    "simpo": (
        CPOTrainer,
        CPOConfig,
        {"loss_type": "simpo", "beta": BETA, "simpo_gamma": GAMMA, "cpo_alpha": 0.0, "max_length": 512},
        ("chosen", "rejected"),
    ),
    "sft": (SFTTrainer, SFTConfig, {"max_length": None}, ("completion",)),
}
"""Key of `fidelity.TRL_QUANTITIES` → trainer, class and options of its arguments, columns beside `prompt`."""


def words(tokens: Sequence[int]) -> str:
    """Return the text that `fidelity.tokenizer` reads as these tokens."""
    return " ".join(f"t{i}" for i in tokens)


def dataset(columns: Sequence[str]) -> Dataset:
    """Return the rows as text; trainers add the end token."""
    texts = ([words(row.prompt), *(f" {words(a[:-1])}" for a in row.answers)] for row in pairs())
    return Dataset.from_list([dict(zip(("prompt", *columns), text, strict=False)) for text in texts])


def theirs() -> Arrays:
    """Return loss and gradients of each trainer on one batch of all rows, after the authors' five steps."""
    disable_progress_bars()
    found: Arrays = {}
    for name, (trainer_class, config, options, columns) in TRAINERS.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_class(
                problem(3).model,
                args=config(output_dir=folder, **COMMON, **options),
                train_dataset=dataset(columns),
                processing_class=tokenizer(),
            )
            model = moved(trainer.model.train())
            batch = trainer.data_collator([trainer.train_dataset[i] for i in range(PAIRS)])
            loss = trainer.compute_loss(model, batch)
            loss.backward()
        found |= {f"{name} loss": loss.detach().reshape(1).numpy(), **gradients(lora(model), f"{name} gradients")}
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    np.savez_compressed(TRL_VECTORS, **theirs())  # type: ignore[arg-type]
