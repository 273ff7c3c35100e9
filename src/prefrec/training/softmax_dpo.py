"""Preference alignment with Softmax DPO or another loss of `prefrec.losses`, against a frozen reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from prefrec.errors import ConfigError
from prefrec.lm.packing import PackedBatch
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import language_model
from prefrec.losses import (
    COLUMNS,
    LossError,
    PreferenceLoss,
    effective_negatives,
    loss_by_size,
    loss_name,
    needs_reference,
    softmax_dpo_loss,
    takes,
)
from prefrec.training.adapters import (
    REFERENCE_ADAPTER,
    add_reference_adapter,
    check_keeps_base,
    read_reference_adapter,
    reference_of,
)
from prefrec.training.base import ChoiceTrainer
from prefrec.training.config import SoftmaxDPOConfig
from prefrec.training.datasets import PreferenceDataset, encode_preferences
from prefrec.training.passes import chain_rule_term, logps_no_grad
from prefrec.training.reference import reference_logps

SIZES = "sizes"
"""Field of a collated batch: number of answers of each example."""


class SoftmaxDPOTrainer(ChoiceTrainer):
    """Align a causal language model with one chosen and N rejected answers per example.

    Args:
        model: a model, a PEFT model (training continues on its active adapter), or a name for
            `prefrec.lm.models.load_model`. A given model is changed as by `SFTTrainer`; a PEFT model also gets the
            frozen adapter `ref`.
        ref_model: the reference: a model with the same vocabulary, or the name of another adapter of `model`. A model
            is moved to the training device, in evaluation mode. Default: the current weights of `model`.
        args: a `SoftmaxDPOConfig`. Default: its defaults.
        train_dataset, eval_dataset: rows `prompt, chosen, rejected` (a `datasets.Dataset` or a list of dicts), as
            text or as messages, with any number of rejected answers; or a `PreferenceDataset`, which samples its own
            negatives. A loss that takes `scores` also needs that column: a list with a number for the chosen answer
            and for each rejected answer.
        peft_config: train a new adapter of this kind; the reference is the base without it.
        **options: further arguments, as for `SFTTrainer`.

    Raises:
        ConfigError: arguments or settings are missing, unknown or contradictory.

    Logged metrics: `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (the chosen reward
    is the highest), `logps/chosen`, `logps/rejected`, and `negatives/effective` (1/Σw², see
    `prefrec.losses.effective_negatives`). Those of `eval_dataset`, and `eval_loss`, are means over its examples.
    """

    config_class = SoftmaxDPOConfig
    description = "S-DPO"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | None = None,
        ref_model: PreTrainedModel | str | None = None,
        args: SoftmaxDPOConfig | None = None,
        **options: Any,
    ) -> None:
        self._reference_adapter = ref_model if isinstance(ref_model, str) else None
        self.ref_model = None if isinstance(ref_model, str) else ref_model
        _check_reference(model, ref_model)
        super().__init__(model, args, **options)
        if self.ref_model is not None:
            self._settle_reference(self.ref_model)

    def prepare_loss(self, args: SoftmaxDPOConfig) -> None:
        self._stored = False
        self.loss_function = args.loss()
        self._columns = [name for name in COLUMNS if takes(self.loss_function, name)]
        self._needs_reference = needs_reference(self.loss_function)
        self.description = "S-DPO" if self.loss_function is softmax_dpo_loss else loss_name(args.loss_type).upper()

    def prepare_model(self, model: nn.Module) -> None:
        if self._needs_reference and self.ref_model is None:
            if isinstance(model, PeftModel):
                for config in model.peft_config.values():
                    check_keeps_base(config, is_new=False)
            elif self._peft_config is not None:
                check_keeps_base(self._peft_config, is_new=True)
        if self.ref_model is None and isinstance(model, PeftModel):
            add_reference_adapter(model, self._reference_adapter)
        elif self._reference_adapter:
            raise ConfigError(
                f"ref_model: {self._reference_adapter!r} is the name of an adapter, but the model has no adapter: "
                "pass a loaded model (`prefrec.lm.models.load_model`)"
            )

    def about_rows(self) -> str:
        least, most = self.train_dataset.sizes
        count = f"{least} to {most}" if least < most else f"{most}"
        return f"{super().about_rows()}, N = {count} rejected titles per example"

    def build_dataset(self, rows: Any) -> Any:
        c = self.args
        if isinstance(rows, PreferenceDataset):
            if c.num_negatives is not None and rows.sizes[1] > c.num_negatives:
                raise ConfigError(
                    f"num_negatives is {c.num_negatives}, but the PreferenceDataset has {rows.sizes[1]} rejected "
                    "answers per step: give num_negatives to the dataset"
                )
            # What is computed under the reference of this trainer must not reach another trainer with these rows.
            rows = copy(rows)
            if not rows.has_reference:
                rows.ref_logps = None
        else:
            rows = list(rows)
            sets = encode_preferences(rows, self.encoder)
            scores = [row.get("scores") for row in rows]
            scored = None if any(s is None for s in scores) else scores
            rows = PreferenceDataset(
                sets, num_negatives=c.num_negatives, negatives=c.negatives, seed=c.seed, scores=scored
            )
        if "scores" in self._columns and rows.scores is None:
            name = loss_name(self.args.loss_type)
            raise ConfigError(f"loss {name} needs `scores` in each row: one number per answer, the chosen one first")
        return rows

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir)) or True
        self._resumed = None if isinstance(resume_from_checkpoint, bool | None) else Path(resume_from_checkpoint)
        if self._precomputes() and (self._is_reference_kept or not self._stored):
            self._resume_reference()
            self._store_reference()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        # If all weights are trained, the model before its first step is the reference.
        if self._precomputes() and not self._is_reference_kept and not self._stored:
            self._store_reference()
        return super().evaluate(eval_dataset, *args, **kwargs)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        collated = super().collate(rows)
        # A list instead of a tensor: it stays on the CPU, where the loss groups examples by size.
        collated[SIZES] = [len(row["choices"].answers) for row in rows]
        for name in self._columns:
            numbers = [r["scores"] if name == "scores" else list(map(len, r["choices"].answers)) for r in rows]
            collated[name] = pad_sequence([torch.tensor(n, dtype=torch.float32) for n in numbers], batch_first=True)
        if "ref_logps" in rows[0]:
            known = [torch.from_numpy(row["ref_logps"]) for row in rows]
            collated["ref_logps"] = pad_sequence(known, batch_first=True, padding_value=-math.inf)
        return collated

    def count_items(self, batch: Mapping[str, Any]) -> int:
        return int(batch["choice_mask"].shape[0])

    def choice_loss(
        self, model: nn.Module, passes: Sequence[PackedBatch], extra: Mapping[str, Any], weight: Tensor | float
    ) -> Tensor:
        ref_logps = extra.get("ref_logps")
        if ref_logps is None and self._needs_reference:
            ref_logps = self._reference_pass(model, passes)
        in_parts = len(passes) > 1 and torch.is_grad_enabled()
        scorer = self.scorer_for(training=model.training)
        policy_logps = logps_no_grad(scorer, model, passes) if in_parts else scorer.choice_logps(passes, model)
        columns = {name: extra[name] for name in self._columns}
        try:
            out = loss_by_size(self.loss_function, policy_logps, ref_logps, self.args.beta, extra[SIZES], **columns)
        except LossError as e:
            raise ConfigError(str(e)) from e
        metrics = preference_metrics(out, policy_logps)
        if self.args.log_rejected:
            self._record_columns(model, out, policy_logps, extra)
        if not model.training:
            metrics["loss"] = out.losses  # replaces transformers' mean, which counts some examples twice
        self.record(model, metrics, extra)
        loss = out.losses.sum()
        if not in_parts:
            return loss
        (slope,) = torch.autograd.grad(loss, policy_logps)
        for batch in passes[:-1]:
            with self.backward_early(model) as backward:
                part, slope = chain_rule_term(scorer, model, batch, slope)
                backward(part * weight)
        part, _ = chain_rule_term(scorer, model, passes[-1], slope)
        # The value of the entire loss with the gradient of the last pass; the others are already accumulated.
        return loss.detach() + (part - part.detach())

    def _settle_reference(self, model: PreTrainedModel) -> None:
        """Freeze a given reference on the training device; raise ConfigError if it does not fit the policy."""
        if self.is_sharded:
            raise ConfigError(
                "ref_model: with sharded weights, the reference must be an adapter of the model: give its name"
            )
        sizes = [language_model(m).config.vocab_size for m in (self.model, model)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"ref_model has {sizes[1]} tokens, but the model has {sizes[0]}: use models with the same tokenizer"
            )
        model.to(self.args.device).eval().requires_grad_(False)

    def _precomputes(self) -> bool:
        # Sharded weights can only be used inside the training loop.
        return self.args.precompute_ref_log_probs and self._needs_reference and not self.is_sharded

    def _record_columns(
        self, model: nn.Module, out: PreferenceLoss, policy_logps: Tensor, extra: Mapping[str, Any]
    ) -> None:
        """Record reward and log-probability of each rejected column, over the examples that have it."""
        for column in range(1, policy_logps.shape[1]):
            absent = policy_logps[:, column].isneginf()
            values = {f"rewards/rejected_{column}": out.rewards, f"logps/rejected_{column}": policy_logps}
            shown = {name: v[:, column].masked_fill(absent, 0.0) for name, v in values.items()}
            self.record(model, shown, extra, (~absent).long())

    @property
    def _is_reference_kept(self) -> bool:
        """Whether the reference stays in memory. Without an adapter, it is the model before its first step."""
        return self.ref_model is not None or isinstance(self.model, PeftModel)

    def _store_reference(self) -> None:
        """Compute log-probabilities of all examples under the reference, unless they were given."""
        if not self.train_dataset.has_reference:
            self._precompute(self.train_dataset, self.scorer)
        if self.eval_dataset is not None and not self.eval_dataset.has_reference:
            self._precompute(self.eval_dataset, self.eval_scorer)
        self._stored = True

    def _resume_reference(self) -> None:
        """Read the adapter `ref` of a resumed run from its checkpoint, before the reference is computed."""
        has_adapter = isinstance(self.model, PeftModel) and REFERENCE_ADAPTER in self.model.peft_config
        if self._resumed and self.ref_model is None and has_adapter:
            folder = self._resumed / REFERENCE_ADAPTER
            if folder.is_dir():
                read_reference_adapter(self.model, folder)

    def _precompute(self, dataset: Any, scorer: ChoiceScorer) -> None:
        dataset.ref_logps = reference_logps(
            scorer if self.ref_model is None else scorer.under(self.ref_model),
            dataset.choice_sets,
            batch_size=self.args.per_device_eval_batch_size,
            precision=self._autocast,
            folder=Path(self.args.reference_folder or str(self.args.output_dir)),
        )

    def _reference_pass(self, model: nn.Module, passes: Sequence[PackedBatch]) -> Tensor:
        scorer = self.scorer_for(training=model.training)
        if self.ref_model is not None:
            with torch.no_grad(), self._autocast():
                return scorer.choice_logps(passes, self.ref_model)
        policy = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if not isinstance(policy, PeftModel):
            raise ConfigError(
                "log-probabilities under the reference are not stored for these examples, and when all weights are "
                "trained there is no reference in memory: set precompute_ref_log_probs=True and pass the examples as "
                "train_dataset or eval_dataset before `train()`, or train an adapter (peft_config), which FSDP and "
                "DeepSpeed always need"
            )
        with torch.no_grad(), reference_of(policy), self._autocast():
            return scorer.choice_logps(passes, model)


def _check_reference(model: Any, ref_model: Any) -> None:
    if isinstance(ref_model, TrainingArguments):
        raise ConfigError("the second argument is ref_model, as in TRL: write args=SoftmaxDPOConfig(…)")
    if isinstance(ref_model, PeftModel):
        raise ConfigError(
            "ref_model has an adapter: load that adapter into the policy, load_adapter(model, folder, "
            "adapter_name='sft'), and give its name, ref_model='sft'; or merge it into its base (merge_and_unload)"
        )
    if ref_model is not None and ref_model is model:
        raise ConfigError(
            "ref_model is the model that is trained: remove it; the model's current weights are the reference"
        )


def preference_metrics(out: PreferenceLoss, policy_logps: Tensor) -> dict[str, Tensor]:
    """Return TRL's metrics of a preference batch, each [B], from rewards and log-probabilities [B, 1+N].

    Both are −inf beyond the answers of an example; means are over existing answers.
    """
    rewards, logps = out.rewards.detach(), policy_logps.detach()
    absent = logps[:, 1:].isneginf()

    def mean(rejected: Tensor) -> Tensor:
        return rejected.masked_fill(absent, 0.0).sum(dim=1) / (~absent).sum(dim=1)

    chosen, rejected = rewards[:, 0], rewards[:, 1:]
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": mean(rejected),
        "rewards/margins": chosen - mean(rejected),
        "rewards/accuracies": (chosen > rejected.max(dim=1).values).float(),
        "logps/chosen": logps[:, 0],
        "logps/rejected": mean(logps[:, 1:]),
        "negatives/effective": effective_negatives(rewards),
    }
