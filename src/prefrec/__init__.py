"""Train a recommender on your own log, and learn what each part of it is worth.

The names below are imported on first use, so that `import prefrec` stays fast.
"""

from __future__ import annotations

from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefrec.console import show_progress as show_progress
    from prefrec.evaluation import evaluate as evaluate
    from prefrec.evaluation import evaluate_full as evaluate_full
    from prefrec.example import load_example as load_example
    from prefrec.from_frames import fit as fit
    from prefrec.lm.scoring import choice_logps as choice_logps
    from prefrec.losses import softmax_dpo_loss as softmax_dpo_loss
    from prefrec.rankers import LMRanker as LMRanker
    from prefrec.recommender import Recommender as Recommender
    from prefrec.training import SFTConfig as SFTConfig
    from prefrec.training import SFTTrainer as SFTTrainer
    from prefrec.training import SoftmaxDPOConfig as SoftmaxDPOConfig
    from prefrec.training import SoftmaxDPOTrainer as SoftmaxDPOTrainer
    from prefrec.training import lora_config as lora_config

# PEFT imports bitsandbytes if it is installed, which warns on a CPU without fast kernels even if it is not used. A
# spawned process imports both before any of its own code runs, but always after this package.
getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)

__version__ = "0.2.0"

_HOMES = {
    "LMRanker": "prefrec.rankers",
    "Recommender": "prefrec.recommender",
    "SFTConfig": "prefrec.training",
    "SFTTrainer": "prefrec.training",
    "SoftmaxDPOConfig": "prefrec.training",
    "SoftmaxDPOTrainer": "prefrec.training",
    "choice_logps": "prefrec.lm.scoring",
    "evaluate": "prefrec.evaluation",
    "evaluate_full": "prefrec.evaluation",
    "fit": "prefrec.from_frames",
    "load_example": "prefrec.example",
    "lora_config": "prefrec.training",
    "show_progress": "prefrec.console",
    "softmax_dpo_loss": "prefrec.losses",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefrec' has no attribute {name!r}")
    from prefrec.extras import imported

    return getattr(imported(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
