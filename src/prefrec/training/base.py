"""What SFT and preference alignment share: collation, exact averaging, metrics, the global batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.markup import escape
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback

from prefrec.console import say, warn
from prefrec.errors import ConfigError
from prefrec.models import load_model, load_tokenizer
from prefrec.packing import Layout, PackedBatch, pack
from prefrec.prompts import PromptEncoder
from prefrec.scoring import BRANCHING, language_model, layout_for, verified_layout
from prefrec.training.config import ChoiceTrainingArguments
from prefrec.training.progress import ProgressCallback


class ChoiceTrainer(Trainer):
    """A `transformers.Trainer` over choice sets. Use `SFTTrainer` or `SoftmaxDPOTrainer`.

    The loss of an optimiser step is the sum over the global batch divided by its number of items (answer
    tokens in SFT, rows in alignment), so that accumulation and more processes change nothing but rounding.
    """

    description = "training"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        args: ChoiceTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if isinstance(model, str):
            processing_class = processing_class or load_tokenizer(model)
            model = load_model(model)
        if processing_class is None:
            processing_class = load_tokenizer(model.config._name_or_path)
        if peft_config is not None:
            model = self._wrap(model, peft_config)
        if args.disable_dropout:
            _disable_dropout(model)
        if args.bf16:
            _leave_casting_to_autocast(model)
        self.encoder = PromptEncoder(processing_class, max_length=args.max_length, chat=args.chat)
        self._sums: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collate,
            train_dataset=self.build_dataset(train_dataset),
            eval_dataset=None if eval_dataset is None else self.build_dataset(eval_dataset),
            processing_class=processing_class,
            callbacks=[ProgressCallback(args.run_name or self.description), *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)
        if args.n_gpu > 1:
            raise ConfigError(
                f"{args.n_gpu} GPUs in one process are not supported: start one process a GPU, "
                "`accelerate launch --num_processes N …`, or set CUDA_VISIBLE_DEVICES to one"
            )
        # Both say "the loss is already averaged over the accumulation steps"; which is read depends on the
        # version of transformers.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self.row_layout = self._layout()
        self.report_global_batch()

    def build_dataset(self, rows: Any) -> Any:
        """The rows as a dataset of choice sets; datasets of ours pass through."""
        raise NotImplementedError

    def choice_loss(self, model: nn.Module, batch: PackedBatch, extra: Mapping[str, Tensor]) -> Tensor:
        """Summed loss of a batch; reports metrics by `self.record`."""
        raise NotImplementedError

    def count_items(self, batch: Mapping[str, Any]) -> int:
        """Number of items that the summed loss of `batch` is over."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows `{"choices": ChoiceSet, …}` → fields of a `PackedBatch`, and stacked extras ([B, C])."""
        batch = pack([r["choices"] for r in rows], pad_id=self.encoder.end, layout=self.row_layout)
        extras = {k: torch.stack([torch.as_tensor(r[k]) for r in rows]) for k in rows[0] if k != "choices"}
        return {**batch.as_dict(), **extras}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        batch, extra = split_inputs(inputs)
        total = self.choice_loss(model, batch, extra)
        if model.training and num_items_in_batch is not None:
            # DDP averages the gradients over the processes; the items were counted over all of them.
            loss = total * self.accelerator.num_processes / num_items_in_batch
        else:
            loss = total / self.count_items(inputs)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, None, None]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = cast(Tensor, self.compute_loss(model, self._prepare_inputs(inputs)))
        return loss.detach(), None, None

    def record(self, model: nn.Module, metrics: Mapping[str, Tensor]) -> None:
        """Keep means of `metrics` for the next line of the log."""
        into = self._sums["train" if model.training else "eval"]
        for name, values in metrics.items():
            into[name].append(float(values.detach().float().mean()))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "eval" if any(k.startswith("eval_") for k in logs) else "train"
        prefix = "eval_" if mode == "eval" else ""
        for name, values in self._sums[mode].items():
            logs[f"{prefix}{name}"] = sum(values) / len(values)
        self._sums[mode].clear()
        super().log(logs, *args, **kwargs)

    def report_global_batch(self) -> None:
        """Print the global batch, which decides the outcome and is easily got wrong."""
        a = cast(ChoiceTrainingArguments, self.args)
        processes, accumulation = a.world_size, a.gradient_accumulation_steps
        self.global_batch = a.per_device_train_batch_size * processes * accumulation
        if self.is_world_process_zero():
            say(
                f"Global batch {self.global_batch} rows = {a.per_device_train_batch_size} a device × {processes} "
                f"process{'es' if processes > 1 else ''} × {accumulation} accumulation steps; "
                f"{len(cast(Any, self.train_dataset))} training rows, layout {self.row_layout}"
            )

    def _layout(self) -> Layout:
        """The layout asked for, else what is right for the model, tried on the longest row of a first batch."""
        args, model = cast(ChoiceTrainingArguments, self.args), cast(nn.Module, self.model)
        if args.layout != "auto":
            return args.layout
        config = language_model(model).config
        layout, reason = layout_for(config)
        if layout == "packed" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            if config.model_type not in BRANCHING:
                layout = "separate"
                reason = f"model type {config.model_type!r} is not in the table, and sharded weights cannot be tried"
        elif layout == "packed":
            dataset = cast(Any, self.train_dataset)
            first = [dataset[i]["choices"] for i in range(min(len(dataset), args.per_device_train_batch_size))]
            with self._autocast():
                layout, reason = verified_layout(model, max(first, key=lambda c: c.length), self.encoder.end, layout)
        if layout == "separate":
            warn(f"scoring one sequence an answer, which is slower: {escape(reason)}")
        return layout

    def _autocast(self) -> torch.autocast:
        enabled = self.args.bf16 or self.args.fp16
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=enabled)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        count = torch.tensor(sum(map(self.count_items, batch_samples)), device=device)
        return self.accelerator.gather(count).sum()

    def _wrap(self, model: nn.Module, peft_config: PeftConfig) -> PeftModel:
        if isinstance(model, PeftModel):
            raise ConfigError("the model already carries an adapter: leave `peft_config` out to go on training it")
        return get_peft_model(cast(Any, model), peft_config)


def split_inputs(inputs: Mapping[str, Any]) -> tuple[PackedBatch, dict[str, Tensor]]:
    """A collated batch as its `PackedBatch` and everything else."""
    names = {f.name for f in fields(PackedBatch)}
    batch = PackedBatch(**{k: v for k, v in inputs.items() if k in names})
    return batch, {k: v for k, v in inputs.items() if k not in names}


def _leave_casting_to_autocast(model: nn.Module) -> None:
    """Stop PEFT's cast of every adapter input to float32, which autocast would undo at once."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
