"""Settings that every training stage of a recipe shares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prefrec.data import PreparedData
from prefrec.data.rows import latest_rows
from prefrec.settings import Section
from prefrec.training.defaults import DISABLE_DROPOUT, LEARNING_RATE, MAX_GRAD_NORM, MOST_EPOCHS, WARMUP


class TrainSection(Section):
    """Settings of all training stages."""

    rows: int | None = Field(None, ge=1, description="Train on N random examples. Default: all.")
    skip_rows: int = Field(
        0, ge=0, description="Skip the first N examples of the shuffled data (keeps stages disjoint)."
    )
    epochs: float = Field(1.0, gt=0, le=MOST_EPOCHS, description="Number of epochs.")
    learning_rate: float = Field(LEARNING_RATE, gt=0, le=1, description="Peak learning rate.")
    global_batch_size: int = Field(16, ge=1, description="Examples per optimiser step, over all processes.")
    per_device_batch_size: int = Field(
        4,
        ge=1,
        description="Batch size per device. If it is not set, a GPU doubles it up to 4,000 tokens, as memory allows.",
    )
    warmup: float = Field(WARMUP, ge=0, lt=1, description="Fraction of the steps for warm-up.")
    max_grad_norm: float = Field(MAX_GRAD_NORM, ge=0, description="Clip the gradient to this norm.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of AdamW.")
    disable_dropout: bool = Field(DISABLE_DROPOUT, description="Turn all dropout off, as TRL does for alignment.")
    eval_rows: int = Field(0, ge=0, description="Validation examples for the loss curves. 0: none.")
    eval_steps: int = Field(25, ge=1, description="Evaluate every N optimiser steps.")
    save_steps: int = Field(25, ge=1, description="Save a checkpoint every N optimiser steps.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = Field(
        "none", description="Also send the log to this tracker, which must be installed."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: less memory, about 1.5 times the time."
    )

    def available_rows(self, data: PreparedData, seed: int) -> int:
        """Return the number of training examples from which the stage chooses."""
        return len(data.train)

    def decisive(self) -> dict[str, Any]:
        """Return the settings on which the result depends."""
        return self.model_dump(exclude=self.idle_settings())

    def idle_settings(self) -> set[str]:
        """Return the names of settings that do not affect the result and are not part of keys."""
        idle = {"save_steps", "report_to"}
        # With dropout, validation does affect the result, because it advances the random generator.
        if self.disable_dropout:
            idle |= {"eval_rows", "eval_steps"}
        elif not self.eval_rows:
            idle.add("eval_steps")
        return idle


class RowsSection(TrainSection):
    """Settings of stages that train on ranking examples."""

    latest_per_user: int | None = Field(
        None, ge=1, description="Use only each user's N most recent examples. Default: all."
    )

    def available_rows(self, data: PreparedData, seed: int) -> int:
        return len(latest_rows(data.train, self.latest_per_user))
