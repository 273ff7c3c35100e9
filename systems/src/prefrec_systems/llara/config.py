"""What LLaRA, and S-DPO after it, are trained with, checked by pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefrec.rankers.config import RankerConfig
from prefrec.training import SoftmaxDPOConfig
from prefrec.training.section import RowsSection


class LlaraConfig(RankerConfig, RowsSection):
    """LLaRA: SFT on prompts in which each item is its title and the projected vector of a sequential recommender."""

    kind: Literal["llara"] = "llara"
    name: str = "LLaRA"
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate, of adapter and projector.")
    items_from: str = Field(
        "SASRec", description="Name of the sequential recommender whose item vectors are projected; made before."
    )


class LlaraAlignConfig(RankerConfig, RowsSection):
    """S-DPO after LLaRA: its adapter is the reference and the start, and its projector stays as it is."""

    kind: Literal["llara-s-dpo"] = "llara-s-dpo"
    name: str = "LLaRA-S-DPO"
    reference: str = Field("LLaRA", description="Name of the `llara` entry that it goes on from; made before.")
    beta: float = Field(SoftmaxDPOConfig.beta, gt=0, description="Pull to the reference.")
    num_negatives: int = Field(3, ge=1, description="Rejected answers a row and step.")
    negatives: Literal["fixed", "per_epoch"] = Field(
        SoftmaxDPOConfig.negatives, description="Drawn once, or anew in each epoch."
    )
    max_tokens_per_pass: int | None = Field(
        SoftmaxDPOConfig.max_tokens_per_pass,
        ge=1,
        description="Tokens a pass, for many negatives: less memory, the same gradient; None: no limit.",
    )

    def idle_settings(self) -> set[str]:
        """As for all stages, and passes."""
        return super().idle_settings() | {"max_tokens_per_pass"}
