"""Supervised fine-tuning: −log π of the chosen answer, prompt tokens carry no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefrec.packing import PackedBatch
from prefrec.scoring import answer_token_logps, sum_by_choice
from prefrec.training.base import ChoiceTrainer
from prefrec.training.datasets import ChoiceDataset, encode_completions


class SFTTrainer(ChoiceTrainer):
    """Fine-tunes a causal LM on the answers that users chose.

    Args:
        model: a model, a PEFT model, or a name for `prefrec.models.load_model`.
        args: an `SFTConfig`.
        train_dataset: rows `prompt: str, completion: str` (a `datasets.Dataset` or a list of dicts), or a
            `ChoiceDataset`.
        eval_dataset: the same, for `eval_loss`.
        processing_class: the tokenizer; taken from the model's folder where not given.
        peft_config: train a new adapter of this kind instead of all weights.

    The loss is the mean over the answer tokens of the global batch, end token included, and `eval_loss` that over
    all answer tokens of `eval_dataset`. Logged beside it:
    `logps/chosen`, the mean summed log-probability of an answer.
    """

    description = "SFT"

    def build_dataset(self, rows: Any) -> Any:
        return rows if isinstance(rows, ChoiceDataset) else ChoiceDataset(encode_completions(rows, self.encoder))

    def count_items(self, batch: Mapping[str, Any]) -> int:
        return int(batch["targets"].numel())

    def choice_loss(
        self, model: nn.Module, passes: Sequence[PackedBatch], extra: Mapping[str, Tensor], weight: Tensor | float
    ) -> Tensor:
        (batch,) = passes
        token_logps = answer_token_logps(model, batch)
        logps = sum_by_choice(token_logps.detach(), batch)[:, 0]
        self.record(model, {"logps/chosen": logps}, extra)
        if not model.training:
            # In place of transformers' mean of the batches' means.
            self.record(model, {"loss": -logps}, extra, torch.bincount(batch.choices))
        return -token_logps.sum()
