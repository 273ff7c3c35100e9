"""Settings of a sequential recommender, and the job that its training process reads."""

from __future__ import annotations

from itertools import product
from typing import Literal, Self, TypedDict, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from prefrec.data.config import Section

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
FIXED = {"loss_type": "CE", "hidden_act": "gelu"}
"""Settings of the models that are hopwise's defaults and not numbers."""
METRIC = "ndcg@10"
"""Chooses the epoch and the cell of the grid."""
MISSING = 3
"""Exit code of the training process if hopwise, or a module that it needs, is not installed."""


class Grid(Section):
    """Values to try in all combinations; validation chooses. An empty list stands for the section's one value."""

    learning_rate: list[PositiveFloat] = Field(default_factory=list)
    weight_decay: list[NonNegativeFloat] = Field(default_factory=list)


class SequentialConfig(Section):
    """One sequential recommender and its training."""

    model: SequentialName = Field("SASRec", description="GRU4Rec, Caser or SASRec; also its name in the tables.")
    epochs: int = Field(200, ge=1, description="Most passes over the training rows.")
    patience: int = Field(10, ge=1, description="Epochs without a better validation NDCG@10 that end training.")
    batch_size: int = Field(2048, ge=1, description="Training rows per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam, constant.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, as Adam adds it to the gradient.")
    grid: Grid = Field(default_factory=lambda: Grid(), description="Learning rates and L2 penalties to choose from.")
    settings: dict[str, int | float] = Field(
        default_factory=dict,
        description="Of the model, with hopwise's names, such as hidden_size; default: hopwise's.",
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


class Job(TypedDict):
    """The content of the job file."""

    model: str
    benchmark: str  # folder that `write_benchmark` wrote, absolute; also the working directory
    out: str  # folder for the outcome, absolute
    # items, users: number of tokens
    items: int
    users: int
    history_length: int
    epochs: int
    patience: int
    batch_size: int
    seed: int
    settings: dict[str, float]
    names: list[str]  # of the settings that are kept with the weights
    trials: list[tuple[float, float]]  # (learning rate, weight decay) of each training
