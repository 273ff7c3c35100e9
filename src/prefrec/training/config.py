"""Settings of SFT and alignment: transformers' TrainingArguments, extended for choice sets."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import TrainingArguments

from prefrec.errors import ConfigError
from prefrec.lm.packing import LayoutChoice
from prefrec.losses import OPTIONS, Loss, find_loss, loss_name, sum_of_losses, with_options
from prefrec.prompts import MAX_LENGTH
from prefrec.training.datasets import check_negatives
from prefrec.training.defaults import (
    BETA,
    CHAT,
    DISABLE_DROPOUT,
    ITEM_LEARNING_RATE,
    LEARNING_RATE,
    LOSS,
    MAX_GRAD_NORM,
    NEGATIVES,
    PRECOMPUTE_REFERENCE,
    SFT_LEARNING_RATE,
    SFT_MAX_GRAD_NORM,
    WARMUP,
    NegativesDrawn,
)

SAMPLING = ("group_by_length", "random", "sequential")


@dataclass
class ChoiceTrainingArguments(TrainingArguments):
    """Settings that both stages share. The defaults are those of the S-DPO authors: cosine, warm-up 0.05, clip 0.3.

    Attributes:
        max_length: maximum number of tokens of a prompt with its longest answer.
        chat: wrap prompts in the tokenizer's chat template.
        global_batch_size: examples per optimiser step, over all processes; sets `gradient_accumulation_steps`.
        layout: `packed`, `separate`, or `auto` (packed if it is correct for the model).
        disable_dropout: turn off all dropout of the model.
        model_init_kwargs: arguments of `prefrec.lm.models.load_model`, for a model that is given by its name.
        item_learning_rate: learning rate of item-ID tokens (`prefrec.lm.items`). Default: `learning_rate`.
        train_sampling_strategy: `random`, `sequential`, or `group_by_length`: the same examples per optimiser step as
            with `random`, but examples of similar length share a pass.
    """

    max_length: int | None = MAX_LENGTH
    model_init_kwargs: dict[str, Any] | None = None
    chat: bool = CHAT
    global_batch_size: int | None = None
    per_device_train_batch_size: int = 4
    num_train_epochs: float = 1.0
    layout: LayoutChoice = "auto"
    disable_dropout: bool = DISABLE_DROPOUT
    train_sampling_strategy: str = "group_by_length"
    learning_rate: float = LEARNING_RATE
    lr_scheduler_type: Any = "cosine"
    warmup_steps: float = WARMUP
    max_grad_norm: float = MAX_GRAD_NORM
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    item_learning_rate: float | None = None
    report_to: Any = "none"
    remove_unused_columns: bool = False
    disable_tqdm: bool | None = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # torch warns without one
        if self.train_sampling_strategy not in SAMPLING:
            raise ConfigError(
                f"train_sampling_strategy {self.train_sampling_strategy!r}: expected one of {', '.join(SAMPLING)}"
            )
        if self.label_smoothing_factor:
            raise ConfigError("label_smoothing_factor is not supported: remove it")
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation(self.global_batch_size)

    def to_save(self) -> Self:
        """Return the settings as they are saved beside weights."""
        return self

    def _accumulation(self, global_batch_size: int) -> int:
        at_once = self.per_device_train_batch_size * self.world_size
        steps, rest = divmod(global_batch_size, at_once)
        if rest or not steps:
            raise ConfigError(
                f"global_batch_size {global_batch_size} is not a multiple of per_device_train_batch_size "
                f"{self.per_device_train_batch_size} × {self.world_size} processes = {at_once}: change one of them"
            )
        if self.gradient_accumulation_steps not in (1, steps):
            raise ConfigError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} and global_batch_size "
                f"{global_batch_size} (which needs {steps}) contradict each other: remove one of them"
            )
        return steps


@dataclass
class SFTConfig(ChoiceTrainingArguments):
    """Settings of supervised fine-tuning. The loss is −log π of the chosen answer's tokens."""

    num_train_epochs: float = 4.0
    learning_rate: float = SFT_LEARNING_RATE
    item_learning_rate: float | None = ITEM_LEARNING_RATE
    max_grad_norm: float = SFT_MAX_GRAD_NORM


@dataclass
class SoftmaxDPOConfig(ChoiceTrainingArguments):
    """Settings of preference alignment.

    Attributes:
        beta: strength of the pull towards the reference.
        loss_type: a name in `prefrec.losses.LOSSES`, a function like those, or a list of these with `loss_weights`.
        loss_weights: weights of a list of losses; the loss is their weighted sum.
        margin: of the losses that have one. Default: the loss's own default.
        num_negatives: number N of rejected answers per example and step. Default: all.
        negatives: `fixed`: sample once. `per_epoch`: resample the example's rejected answers every epoch.
        precompute_ref_log_probs: compute the log-probabilities under the reference once, before training, and store
            them on disk. Otherwise the frozen adapter computes them in every step.
        reference_folder: folder for these files, which several runs can share. Default: `output_dir`.
        log_rejected: also log the reward and the log-probability of each rejected column, as `rewards/rejected_1` and
            `logps/rejected_1`. Columns are in the order of the rejected answers.
        max_tokens_per_pass: tokens per pass, including padding. Larger batches are split into passes: the same
            gradient with the memory of one pass, at the cost of an additional forward pass. Default: no limit.
    """

    beta: float = BETA
    loss_type: str | Loss | list[str | Loss] = LOSS
    loss_weights: list[float] | None = None
    margin: float | None = None
    num_negatives: int | None = None
    negatives: NegativesDrawn = NEGATIVES
    precompute_ref_log_probs: bool = PRECOMPUTE_REFERENCE
    reference_folder: str | None = None
    log_rejected: bool = False
    max_tokens_per_pass: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.loss()
        except ValueError as e:
            raise ConfigError(f"loss_type: {e}") from e
        if not self.beta > 0:
            raise ConfigError(f"beta must be positive, got {self.beta}")
        check_negatives(self.num_negatives, self.negatives)
        if self.max_tokens_per_pass is not None and self.max_tokens_per_pass < 1:
            raise ConfigError(f"max_tokens_per_pass must be at least 1, got {self.max_tokens_per_pass}")

    def loss(self) -> Loss:
        """Return the loss with its settings."""
        options = {name: getattr(self, name) for name in OPTIONS}
        if not isinstance(self.loss_type, list):
            if self.loss_weights is not None:
                raise ValueError("loss_weights are for a list of losses: remove them")
            return with_options(find_loss(self.loss_type), **options)
        if not self.loss_type:
            raise ValueError("the list is empty: give at least one loss")
        if self.loss_weights is None or len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"{self.loss_type} is a list: give one name, or a weight per loss in loss_weights")
        return sum_of_losses([find_loss(name) for name in self.loss_type], self.loss_weights, **options)

    def to_save(self) -> Self:
        """Return the settings with the name of a loss in place of a function, which may be impossible to pickle."""
        saved = copy(self)
        saved.loss_type = loss_name(self.loss_type)
        return saved

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the name of a loss in place of a function, because loggers write JSON."""
        return super().to_dict() | {"loss_type": loss_name(self.loss_type)}
