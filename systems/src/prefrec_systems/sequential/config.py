"""What a sequential recommender is trained with, checked by pydantic."""

from __future__ import annotations

from itertools import product
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

SequentialName = Literal["GRU4Rec", "Caser", "SASRec"]
SEQUENTIAL_MODELS: tuple[SequentialName, ...] = get_args(SequentialName)
SETTINGS: dict[SequentialName, tuple[str, ...]] = {
    "GRU4Rec": ("embedding_size", "hidden_size", "num_layers", "dropout_prob"),
    "Caser": ("embedding_size", "nv", "nh", "dropout_prob", "reg_weight"),
    "SASRec": (
        "hidden_size",
        "inner_size",
        "n_layers",
        "n_heads",
        "hidden_dropout_prob",
        "attn_dropout_prob",
        "layer_norm_eps",
        "initializer_range",
    ),
}
"""Model → hopwise's names of its numeric settings."""


class Grid(BaseModel):
    """Values to try, each with each; validation chooses. An empty list tries the one value of the section."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: list[PositiveFloat] = Field(default_factory=list)
    weight_decay: list[NonNegativeFloat] = Field(default_factory=list)


class SequentialConfig(BaseModel):
    """One sequential recommender and its training."""

    model_config = ConfigDict(extra="forbid")

    model: SequentialName = Field("SASRec", description="GRU4Rec, Caser or SASRec; also its name in the tables.")
    epochs: int = Field(200, ge=1, description="Most passes over the training rows.")
    patience: int = Field(10, ge=1, description="Epochs without a better validation NDCG@10 that end training.")
    batch_size: int = Field(2048, ge=1, description="Training rows an optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam, constant.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, as Adam adds it to the gradient.")
    grid: Grid = Field(default_factory=lambda: Grid(), description="Learning rates and L2 penalties to choose from.")
    settings: dict[str, int | float] = Field(
        default_factory=dict, description="Of the model, by hopwise's names, such as hidden_size; default: hopwise's."
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := sorted(set(self.settings) - set(SETTINGS[self.model])):
            raise ValueError(
                f"settings: {self.model} has no {', '.join(unknown)}; it takes {', '.join(SETTINGS[self.model])}"
            )
        return self

    @property
    def trials(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of each training, in the order of the grid."""
        rates = self.grid.learning_rate or [self.learning_rate]
        decays = self.grid.weight_decay or [self.weight_decay]
        return list(product(rates, decays))
