"""SFT and preference alignment, based on `transformers.Trainer`."""

from prefrec.training.adapters import load_adapter, lora_config
from prefrec.training.config import SFTConfig, SoftmaxDPOConfig
from prefrec.training.datasets import ChoiceDataset, PreferenceDataset, encode_examples, trajectories
from prefrec.training.sequences import TrajectoryDataset, user_histories
from prefrec.training.sft import SFTTrainer
from prefrec.training.softmax_dpo import SoftmaxDPOTrainer

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
