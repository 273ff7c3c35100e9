"""Settings of GRU4Rec, Caser and SASRec, and of all next-item models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from prefrec.rankers.config import RankerConfig
from prefrec.settings import Section

SequentialName = Literal["GRU4Rec", "Caser", "SASRec"]
SEQUENTIAL_MODELS: tuple[SequentialName, ...] = get_args(SequentialName)


class NextItemSection(Section):
    """Settings of next-item models and their training."""

    hidden_size: int = Field(64, ge=1, description="Width of item vectors and hidden states.")
    inner_size: int = Field(256, ge=1, description="Width of the transformer's feed-forward layers.")
    n_layers: int = Field(2, ge=1, description="Transformer blocks, or layers of the GRU.")
    n_heads: int = Field(2, ge=1, description="Attention heads. They must divide hidden_size.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout on item vectors and inside the layers.")
    epochs: int = Field(200, ge=1, description="Most epochs to train.")
    patience: int = Field(10, ge=1, description="Stop after N epochs without a better validation NDCG@10.")
    batch_size: int = Field(64, ge=1, description="Sequences per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, description="Constant learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hidden_size % self.n_heads:
            raise ValueError(f"n_heads: {self.n_heads} does not divide hidden_size {self.hidden_size}")
        return self


class SequentialConfig(RankerConfig, NextItemSection):
    """A sequential recommender."""

    kind: Literal["sequential"] = "sequential"
    name: str = Field("", description="Name in tables, and of the ranker's folder. Default: that of the model.")
    model: SequentialName = Field("SASRec", description="Architecture of the model.")
    window: int = Field(5, ge=1, description="Caser: number of most recent items that its filters read.")
    negatives: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda negatives: negatives is None,
        description="Train with a sampled softmax of N uniform negatives per sequence. Default: softmax over all "
        "items.",
    )
    logq: bool = Field(
        True,
        exclude_if=lambda logq: logq,
        description="With negatives: add the logarithm of the number of items that a negative stands for to its "
        "score. eSASRec and RecTools do not.",
    )
    grid: dict[str, list[float]] = Field(
        default_factory=dict,
        description="Grid search: fields with values to try, such as learning_rate=1e-3,3e-3. Validation chooses.",
    )

    @field_validator("grid", mode="before")
    @classmethod
    def _lists(cls, grid: Any) -> Any:
        split = isinstance(grid, dict)  # on the command line, the values of a field are one text
        return {name: v.split(",") if isinstance(v, str) else v for name, v in grid.items()} if split else grid

    @model_validator(mode="after")
    def _known(self) -> Self:
        known = NextItemSection.model_fields.keys() | {"window", "negatives"}
        if wrong := sorted(self.grid.keys() - known) + [name for name, values in self.grid.items() if not values]:
            raise ValueError(
                f"grid: {wrong[0]} is not a grid field, or has no values; fields are {', '.join(sorted(known))}"
            )
        if not self.logq and self.negatives is None and "negatives" not in self.grid:
            raise ValueError("logq: false changes the sampled softmax alone; set negatives, or remove logq")
        if self.grid:
            self.trials()
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        return {"name": cls.default_name(raw), **raw} if isinstance(raw, dict) else raw

    @classmethod
    def default_name(cls, raw: Mapping[str, Any]) -> str:
        """Return the name of the model."""
        return str(raw.get("model", cls.model_fields["model"].default))

    def decisive(self) -> dict[str, Any]:
        """Return the settings that affect results."""
        return self.model_dump(exclude={"kind", "name"})

    def trials(self) -> list[tuple[dict[str, float], SequentialConfig]]:
        """Return the cells of the grid in order: the fields that a cell sets, and its configuration."""
        cells = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        raw: dict[str, Any] = self.model_dump(exclude={"grid"})
        return [(cell, SequentialConfig.model_validate(raw | cell)) for cell in cells]
