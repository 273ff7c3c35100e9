"""What the training process is told, and what it answers with."""

from __future__ import annotations

from typing import TypedDict

METRIC = "ndcg@10"
"""Chooses epoch and cell of the grid."""
FIXED = {"loss_type": "CE", "hidden_act": "gelu"}
"""Settings of the models that are hopwise's defaults and not numbers."""
MISSING = 3
"""Exit code where hopwise, or a module that it needs, is not installed."""


class Job(TypedDict):
    """What the file says.

    Attributes:
        model: GRU4Rec, Caser or SASRec.
        benchmark: folder that `write_benchmark` wrote, absolute; also the working directory.
        out: folder for the outcome, absolute.
        items, users: how many tokens there are.
        history_length: of the vocabulary.
        epochs, patience, batch_size, seed: of the training.
        settings: of the model.
        names: of the settings to be kept with the weights.
        trials: (learning rate, weight decay) of each training.
    """

    model: str
    benchmark: str
    out: str
    items: int
    users: int
    history_length: int
    epochs: int
    patience: int
    batch_size: int
    seed: int
    settings: dict[str, float]
    names: list[str]
    trials: list[tuple[float, float]]
