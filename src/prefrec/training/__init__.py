"""SFT and preference alignment, based on `transformers.Trainer`.

The names below load on first use, since transformers and PEFT take seconds.
"""

from typing import TYPE_CHECKING, Any

from prefrec.extras import imported

if TYPE_CHECKING:
    from prefrec.training.adapters import load_adapter as load_adapter
    from prefrec.training.adapters import lora_config as lora_config
    from prefrec.training.config import SFTConfig as SFTConfig
    from prefrec.training.config import SoftmaxDPOConfig as SoftmaxDPOConfig
    from prefrec.training.datasets import ChoiceDataset as ChoiceDataset
    from prefrec.training.datasets import PreferenceDataset as PreferenceDataset
    from prefrec.training.datasets import encode_examples as encode_examples
    from prefrec.training.datasets import trajectories as trajectories
    from prefrec.training.sequences import TrajectoryDataset as TrajectoryDataset
    from prefrec.training.sequences import user_histories as user_histories
    from prefrec.training.sft import SFTTrainer as SFTTrainer
    from prefrec.training.softmax_dpo import SoftmaxDPOTrainer as SoftmaxDPOTrainer

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
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(imported(f"{__name__}.{_HOMES[name]}"), name)
