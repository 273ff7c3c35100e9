"""Settings of LLaRA, and of S-DPO on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from prefrec.rankers.config import RankerConfig
from prefrec.training import SoftmaxDPOConfig
from prefrec.training.section import RowsSection
from prefrec_systems.start import START, check_start, start_needs

if TYPE_CHECKING:
    from prefrec.recipe import Recipe


class LlaraConfig(RankerConfig, RowsSection):
    """LLaRA: SFT on prompts that show each item as its title and its projected item vector."""

    kind: Literal["llara"] = "llara"
    name: str = Field("LLaRA", description="Name in tables, and of the ranker's folder.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of adapter and projector.")
    items_from: str = Field("SASRec", description="Earlier sequential ranker that provides the item vectors.")
    start: str | None = START

    def idle_settings(self) -> set[str]:
        """Return settings that are not part of keys. The key has that of the starting model instead of its name."""
        return super().idle_settings() | {"start"}

    def needs(self) -> dict[str, list[str]]:
        return {"items_from": [self.items_from], **start_needs(self)}

    def check_recipe(self, recipe: Recipe, before: Sequence[str]) -> None:
        check_start(self, recipe)
        if self.items_from not in [r.name for r in recipe.rankers if r.kind == "sequential" and r.name in before]:
            raise ValueError(
                f"rankers.{self.name}.items_from: {self.items_from} has no item vectors: choose an earlier entry of "
                "kind sequential"
            )


class LlaraAlignConfig(RankerConfig, RowsSection):
    """S-DPO on top of LLaRA: its adapter is the start and the reference, and its projector is not trained."""

    kind: Literal["llara-s-dpo"] = "llara-s-dpo"
    name: str = Field("LLaRA-S-DPO", description="Name in tables, and of the ranker's folder.")
    reference: str = Field("LLaRA", description="Earlier llara ranker to start from, and to use as the reference.")
    start: str | None = START
    beta: float = Field(
        SoftmaxDPOConfig.beta, gt=0, description="Strength of the penalty for moving away from the reference (β)."
    )
    num_negatives: int = Field(3, ge=1, description="Rejected answers per example.")
    negatives: Literal["fixed", "per_epoch"] = Field(
        cast(Any, SoftmaxDPOConfig.negatives), description="fixed: sample once. per_epoch: resample every epoch."
    )
    max_tokens_per_pass: int | None = Field(
        SoftmaxDPOConfig.max_tokens_per_pass,
        ge=1,
        description="Split an optimiser step into passes of at most N tokens: less memory, the same gradient. "
        "Default: no limit.",
    )

    def idle_settings(self) -> set[str]:
        """Return settings that are not part of keys: those of every stage, the size of a pass, and the start."""
        return super().idle_settings() | {"max_tokens_per_pass", "start"}

    def needs(self) -> dict[str, list[str]]:
        return {"reference": [self.reference], **start_needs(self)}

    def check_recipe(self, recipe: Recipe, before: Sequence[str]) -> None:
        where, most = f"rankers.{self.name}", recipe.data.candidates.size - 1
        llaras = [r.name for r in recipe.rankers if r.kind in ("llara", self.kind) and r.name in before]
        if self.reference not in llaras:
            raise ValueError(
                f"{where}.reference: {self.name} starts from {self.reference}: add an earlier entry of kind llara "
                "with this name"
            )
        starts = {r.name: getattr(r, "start", None) for r in recipe.rankers}
        if self.start != starts[self.reference]:
            raise ValueError(
                f"{where}.start: it must be that of {self.reference}: set it to {starts[self.reference]}"
            )
        if self.num_negatives > most:
            raise ValueError(
                f"{where}.num_negatives: {self.num_negatives} negatives, but a candidate set of {most + 1} has only "
                f"{most}; lower it, or raise data.candidates.size"
            )
