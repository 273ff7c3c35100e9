"""Settings of LLaRA, and of S-DPO after it."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field

from prefrec.rankers.config import RankerConfig
from prefrec.training import SoftmaxDPOConfig
from prefrec.training.section import RowsSection


class LlaraConfig(RankerConfig, RowsSection):
    """LLaRA: SFT on prompts that show each item as its title and as a projected item vector."""

    kind: Literal["llara"] = "llara"
    name: str = "LLaRA"
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of adapter and projector.")
    items_from: str = Field("SASRec", description="Earlier entry of kind sequential that gives the item vectors.")


class LlaraAlignConfig(RankerConfig, RowsSection):
    """S-DPO after LLaRA: it starts from its adapter, which is the reference too, and keeps its projector."""

    kind: Literal["llara-s-dpo"] = "llara-s-dpo"
    name: str = "LLaRA-S-DPO"
    reference: str = Field("LLaRA", description="Name of the earlier `llara` entry to start from.")
    beta: float = Field(SoftmaxDPOConfig.beta, gt=0, description="Strength of the pull to the reference.")
    num_negatives: int = Field(3, ge=1, description="Rejected answers per row and step.")
    negatives: Literal["fixed", "per_epoch"] = Field(
        cast(Any, SoftmaxDPOConfig.negatives), description="Drawn once, or again in each epoch."
    )
    max_tokens_per_pass: int | None = Field(
        SoftmaxDPOConfig.max_tokens_per_pass,
        ge=1,
        description="Tokens per pass: less memory for many negatives, the same gradient; None: no limit.",
    )

    def idle_settings(self) -> set[str]:
        """Return the settings that change no result: those of every stage, and the size of a pass."""
        return super().idle_settings() | {"max_tokens_per_pass"}
