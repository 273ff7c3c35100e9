"""Inputs for tests of the trainers: settings, a small model with and without adapter, rows of text."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer

from prefrec.training import lora_config
from tiny import small_llama as small_model

FILMS = ["Heat", "Babe", "Emma", "Alien", "Fargo", "Toy Story", "The Matrix", "GoldenEye"]
PREFERENCES = [
    {"prompt": f"Seen {film}. Next:", "chosen": chosen, "rejected": rejected}
    for film, chosen, *rejected in ([FILMS[(i + j) % 8] for j in range(5)] for i in range(8))
]
COMPLETIONS = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PREFERENCES]


def many_negatives(negatives: int, rows: int = 4) -> list[dict[str, Any]]:
    """Preference rows with that many rejected answers, and prompts of different lengths."""
    seen = [", ".join(FILMS[: 1 + i]) for i in range(rows)]
    rejected = [[f"{FILMS[(i + j) % 8]} {j}" for j in range(negatives)] for i in range(rows)]
    return [{"prompt": f"Seen {seen[i]}. Next:", "chosen": FILMS[i], "rejected": rejected[i]} for i in range(rows)]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of a training configuration."""
    steps = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "warmup_steps": 0.0}
    other = {"use_cpu": True, "logging_steps": 1, "save_strategy": "no", "seed": 3, "max_length": 128}
    return {"output_dir": str(folder), **steps, **other, **changes}


def draw_adapters(model: torch.nn.Module, std: float, part: str = "lora_B") -> None:
    """Draw the factors of adapters that are zero at first, so that the adapters change what the model says."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.normal_(std=std)


def adapted_model() -> PeftModel:
    """The small model with an adapter that has been somewhere."""
    torch.manual_seed(1)
    model = get_peft_model(small_model(), lora_config(4))
    draw_adapters(model, 0.02)
    return model


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the weights that are trained."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def losses(trainer: Trainer) -> list[float]:
    """The losses of the log."""
    return [h["loss"] for h in trainer.state.log_history if "loss" in h]
