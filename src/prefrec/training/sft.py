"""Supervised fine-tuning: the loss is −log π of the chosen answer, without prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefrec.errors import ConfigError
from prefrec.lm.packing import PackedBatch
from prefrec.lm.scoring import sum_by_choice
from prefrec.prompts import Trajectory
from prefrec.training.base import ChoiceTrainer
from prefrec.training.config import SFTConfig
from prefrec.training.datasets import ChoiceDataset, encode_completions
from prefrec.training.sequences import TrajectoryDataset


class SFTTrainer(ChoiceTrainer):
    """Fine-tune a causal language model on the answers that users chose.

    After training, `rank` ranks answers to a prompt, and `push_to_hub` publishes the weights with a model card.

    Args:
        model: a model, a PEFT model, or a name for `prefrec.lm.models.load_model`. A given model is changed: it is
            trained, an adapter of `peft_config` is added, dropout is turned off (unless `disable_dropout=False`), and
            LoRA layers are replaced by faster ones (`prefrec.lm.lora`).
        args: an `SFTConfig`. Default: its defaults.
        train_dataset: rows `prompt, completion` (a `datasets.Dataset` or a list of dicts), as text or as messages for
            the tokenizer's chat template; a `ChoiceDataset`; or a `TrajectoryDataset`, in which every title of a
            history is a target.
        eval_dataset: rows or a `ChoiceDataset`, for `eval_loss`. A `ChoiceDataset` with further answers after the
            chosen one also gives `eval_ndcg@10`.
        processing_class: the tokenizer. Default: that of the model's folder.
        peft_config: train a new adapter of this kind instead of all weights.
        **options: arguments of `transformers.Trainer`, such as `model_init`, `optimizers` and `compute_metrics`. Its
            `predictions` are the log-probabilities [n, C] of the answers, chosen first (label 0), −inf beyond the
            answers of an example.

    Raises:
        ConfigError: arguments or settings are missing, unknown or contradictory.

    The softmax is over all tokens, or over the catalogue `within` of an encoded dataset (`EncodedRows`). Losses are
    means over the answer tokens, end token included, of the global batch or of `eval_dataset`; with a catalogue, over
    titles. `logps/chosen`, the mean log-probability of an answer, is also logged.
    """

    config_class = SFTConfig
    description = "SFT"

    def build_dataset(self, rows: Any) -> Any:
        if isinstance(rows, TrajectoryDataset):
            return rows
        if not isinstance(rows, ChoiceDataset):
            return ChoiceDataset(encode_completions(rows, self.encoder))
        for number, choices in enumerate(rows.choice_sets):
            if len(choices.answers) > 1:
                raise ConfigError(f"train_dataset: example {number} has several answers, but SFT trains on one")
        return rows

    def build_eval_dataset(self, rows: Any) -> Any:
        if isinstance(rows, TrajectoryDataset):
            raise ConfigError("a TrajectoryDataset is for training: evaluate rows, or a ChoiceDataset")
        # Further answers of an example are those among which the first one is ranked.
        return rows if isinstance(rows, ChoiceDataset) else super().build_eval_dataset(rows)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        histories = [r["choices"] for r in rows]
        if not isinstance(histories[0], Trajectory):
            return super().collate(rows)
        return self.scorer.pack_trajectories(histories).as_dict()

    def count_items(self, batch: Mapping[str, Any]) -> int:
        return int(batch["targets"].numel() if self.within is None else batch["choice_mask"].sum())

    def choice_loss(
        self, model: nn.Module, passes: Sequence[PackedBatch], extra: Mapping[str, Any], weight: Tensor | float
    ) -> Tensor:
        if not model.training:
            return self._held_out_loss(model, passes, extra)
        (batch,) = passes
        token_logps = self.scorer.token_logps(batch, model)
        titles = batch.choice_mask.sum(dim=1)
        sums = sum_by_choice(token_logps.detach(), batch).masked_fill(~batch.choice_mask, 0.0).sum(dim=1)
        self.record(model, {"logps/chosen": sums}, extra, titles)
        return -token_logps.sum()

    def _held_out_loss(self, model: nn.Module, passes: Sequence[PackedBatch], extra: Mapping[str, Any]) -> Tensor:
        """Record loss and NDCG of examples whose first answer is the chosen one; return the summed loss."""
        logps = self.eval_scorer.choice_logps(passes, model)
        chosen = logps[:, 0]
        metrics = {"logps/chosen": chosen}
        if logps.shape[1] > 1:
            metrics["ndcg@10"] = ndcg_of_first(logps, 10)
        self.record(model, metrics, extra)
        tokens = torch.ones_like(chosen)
        if self.within is None:
            counts = torch.bincount(torch.cat([b.choices for b in passes]), minlength=logps.numel())
            tokens = counts.view(logps.shape)[:, 0]
        # This replaces transformers' loss, a mean of batch means, which weights tokens unequally.
        self.record(model, {"loss": -chosen}, extra, tokens)
        return -chosen.sum()


def ndcg_of_first(scores: Tensor, k: int) -> Tensor:
    """Return NDCG@k [B] of scores [B, C] if only the first answer is relevant; in a tie it ranks last."""
    rank = 1 + (scores[:, 1:] >= scores[:, :1]).sum(dim=1)
    return torch.where(rank <= k, 1 / torch.log2(rank + 1.0), 0.0)
