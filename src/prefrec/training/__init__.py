"""SFT and preference alignment, based on `transformers.Trainer`.

The names below load on first use, since transformers and PEFT take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefrec.training.adapters import load_adapter, lora_config
    from prefrec.training.config import SFTConfig, SoftmaxDPOConfig
    from prefrec.training.datasets import ChoiceDataset, PreferenceDataset, encode_examples, trajectories
    from prefrec.training.sequences import TrajectoryDataset, user_histories
    from prefrec.training.sft import SFTTrainer
    from prefrec.training.softmax_dpo import SoftmaxDPOTrainer

_HOMES = {
    "ChoiceDataset": "datasets",
    "PreferenceDataset": "datasets",
    "SFTConfig": "config",
    "SFTTrainer": "sft",
    "SoftmaxDPOConfig": "config",
    "SoftmaxDPOTrainer": "softmax_dpo",
    "TrajectoryDataset": "sequences",
    "encode_examples": "datasets",
    "load_adapter": "adapters",
    "lora_config": "adapters",
    "trajectories": "datasets",
    "user_histories": "sequences",
}

__all__ = [
    "ChoiceDataset",
    "PreferenceDataset",
    "SFTConfig",
    "SFTTrainer",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TrajectoryDataset",
    "encode_examples",
    "load_adapter",
    "lora_config",
    "trajectories",
    "user_histories",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
