"""The base trainer of SFT and preference alignment: collation, exact averaging, metrics, global batch."""

from __future__ import annotations

import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prefrec import processes
from prefrec.console import say
from prefrec.errors import ConfigError, ModelError, did_you_mean
from prefrec.files import writing
from prefrec.lm.items import item_table
from prefrec.lm.liger import use_liger
from prefrec.lm.lora import use_quick_lora
from prefrec.lm.masks import FLEX, attention_implementation
from prefrec.lm.models import is_quantized, load_model, load_tokenizer
from prefrec.lm.names import base_id
from prefrec.lm.packing import PackedBatch, tokens_of
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import language_model
from prefrec.prompts import PromptEncoder
from prefrec.prompts.chat import Message
from prefrec.prompts.trajectories import question
from prefrec.training.adapters import REFERENCE_ADAPTER, add_adapter
from prefrec.training.config import ChoiceTrainingArguments
from prefrec.training.progress import ProgressCallback
from prefrec.training.sampler import StepSampler, longest_first

FURTHER_PASSES, ROW = "further_passes", "row"


class ChoiceTrainer(Trainer):
    """A `transformers.Trainer` over choice sets. Use `SFTTrainer` or `SoftmaxDPOTrainer`.

    The loss of an optimiser step is the sum over the global batch divided by its number of items (answer tokens in
    SFT, examples in alignment), so gradient accumulation and the number of processes affect only rounding.
    """

    config_class: type[ChoiceTrainingArguments] = ChoiceTrainingArguments
    description = "training"
    sampler: StepSampler | None = None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | None = None,
        args: ChoiceTrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **options: Any,
    ) -> None:
        _refuse_unknown(options, self.config_class)
        if args is not None and not isinstance(args, self.config_class):
            raise ConfigError(f"args is a {type(args).__name__}: write args={self.config_class.__name__}(…)")
        self._peft_config = peft_config
        if train_dataset is None or (model is None and processing_class is None):
            raise ConfigError(
                "give train_dataset, and either a model, or model_init with its tokenizer as processing_class"
            )
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
        processing_class = processing_class or load_tokenizer(name)
        self.args = args = args or self.config_class(output_dir=f"{Path(name).name or 'model'}-{self.description}")
        if isinstance(model, str):
            # Trained weights stay in float32.
            model = load_model(model, **({"dtype": "float32"} | (args.model_init_kwargs or {})))
        elif args.model_init_kwargs:
            raise ConfigError("model_init_kwargs are for a model that is given by its name: remove them")
        self.within = getattr(train_dataset, "within", None)
        self.encoder = getattr(train_dataset, "encoder", None) or PromptEncoder(
            processing_class, max_length=args.max_length, chat=args.chat
        )
        self.prepare_loss(args)
        self._progress = ProgressCallback(args.run_name or self.description)
        # For every batch since the last log line: name, row numbers, sums over each row's items, numbers of items.
        self._recorded: dict[str, list[tuple[str, Tensor, Tensor, Tensor]]] = {"train": [], "eval": []}
        super().__init__(
            model=None if model is None else self._prepared(model),
            args=args,
            data_collator=self.collate,
            train_dataset=self.build_dataset(_rows(train_dataset, "train_dataset")),
            eval_dataset=None if eval_dataset is None else self.build_eval_dataset(eval_dataset),
            processing_class=processing_class,
            callbacks=[self._progress, *(callbacks or [])],
            **options,
        )
        self.remove_callback(PrinterCallback)
        if args.n_gpu > 1:
            raise ConfigError(
                f"{args.n_gpu} GPUs in one process are not supported: start one process per GPU, "
                "`accelerate launch --num_processes N …`, or set CUDA_VISIBLE_DEVICES to one"
            )
        # Each version of transformers reads one of these. Without them, the loss would be divided a second time.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self._check_base()
        self.scorer = self._scorer()
        self.eval_scorer = self.scorer.among(getattr(self.eval_dataset, "within", None) or self.within)
        self.eval_scorer.share = False
        self.add_callback(_EpochCallback(self))
        # The global batch size affects the result and is easily set wrong.
        say(
            f"Global batch {self.global_batch} examples = {args.per_device_train_batch_size} per device × "
            f"{args.world_size} process{'es' if args.world_size > 1 else ''} × {args.gradient_accumulation_steps} "
            f"accumulation steps; {self.about_rows()}, layout {self.scorer.layout}"
        )

    @property
    def global_batch(self) -> int:
        """Number of examples per optimiser step, over all processes."""
        return self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are distributed over processes."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _prepared(self, model: Any) -> nn.Module:
        """Prepare a model for training: add the adapter and turn off dropout."""
        self.prepare_model(model)
        if self._peft_config is not None and isinstance(model, PeftModel):
            raise ConfigError("the model already has an adapter: remove `peft_config` to continue its training")
        if self._peft_config is not None:
            model = add_adapter(model, self._peft_config)
        use_quick_lora(model)
        use_liger(model, self.args.device)
        if self.args.disable_dropout:
            _disable_dropout(model)
        if self.args.bf16:
            leave_casting_to_autocast(model)
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                "the model has no weights that can be trained: give peft_config, or load its adapter with "
                "load_adapter(model, folder, is_trainable=True)"
            )
        return model

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = self._prepared(super().call_model_init(trial))
        if hasattr(self, "scorer"):  # not in the first call
            self.scorer.model = self.eval_scorer.model = model
        return model

    def rank(self, prompt: str | Sequence[Message], answers: Sequence[str]) -> list[tuple[str, float]]:
        """Rank answers to a prompt.

        Args:
            prompt: text, or messages for the chat template.
            answers: texts of the answers.

        Returns:
            The answers with their log-probabilities in nats, best first.
        """
        self.model.eval()
        with self._autocast():
            (logps,) = self.eval_scorer.score([self.encoder.encode_text(prompt, answers)]).tolist()
        return sorted(zip(answers, logps, strict=True), key=lambda pair: -pair[1])

    def prepare_loss(self, args: Any) -> None:
        """Prepare what the loss needs, before the datasets are built."""

    def prepare_model(self, model: nn.Module) -> None:
        """Prepare a model for the loss, before a new adapter is added."""

    def about_rows(self) -> str:
        """Return the number of training examples, for the message at the start."""
        return f"{len(self.train_dataset)} training examples"

    def build_dataset(self, rows: Any) -> Any:
        """Return examples as a dataset of choice sets; such datasets are returned unchanged."""
        raise NotImplementedError

    def build_eval_dataset(self, rows: Any) -> Any:
        """Return examples to evaluate as a dataset of choice sets; the trainer's own datasets are returned unchanged.

        Raise ConfigError if they are several datasets in a dictionary.
        """
        trained, evaluated = getattr(self, "train_dataset", None), getattr(self, "eval_dataset", None)
        if rows is trained or rows is evaluated:
            return rows
        return self.build_dataset(_rows(rows, "eval_dataset"))

    def choice_loss(
        self, model: nn.Module, passes: Sequence[PackedBatch], extra: Mapping[str, Any], weight: Tensor | float
    ) -> Tensor:
        """Return the summed loss of a batch, and report metrics with `self.record`.

        If there are several passes, the gradients of all but the last, times `weight`, may be added to the parameters
        here with `self.backward_early`. The returned loss then has the remaining gradient.
        """
        raise NotImplementedError

    def count_items(self, batch: Mapping[str, Any]) -> int:
        """Return the number of items in the summed loss of `batch`."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of dataset and sampler, for new negatives and a new order of examples."""
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the fields of a `PackedBatch` of examples `{"choices": ChoiceSet, …}`, and their row numbers.

        `further_passes` contains the fields of further batches, if `max_tokens_per_pass` requires them.
        """
        first, *others = self.scorer_for(training=ROW not in rows[0]).pack([r["choices"] for r in rows])
        collated = first.as_dict()
        if ROW in rows[0]:
            collated[ROW] = torch.tensor([r[ROW] for r in rows])
        if others:
            collated[FURTHER_PASSES] = [batch.as_dict() for batch in others]
        return collated

    def scorer_for(self, *, training: bool) -> ChoiceScorer:
        """Return the scorer of training or of evaluation examples, whose catalogues may differ."""
        return self.scorer if training else self.eval_scorer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        passes, extra = split_inputs(inputs)
        if model.training and num_items_in_batch is not None:
            # DDP averages the gradients over the processes, but the items are counted over all of them.
            weight = self.accelerator.num_processes / num_items_in_batch
        else:
            weight = 1 / self.count_items(inputs)
        loss = self.choice_loss(model, self._in_step(passes), extra, weight) * weight
        return (loss, {}) if return_outputs else loss

    @contextmanager
    def backward_early(self, model: nn.Module) -> Iterator[Callable[[Tensor], None]]:
        """Yield a backward function that accumulates gradients without synchronising them.

        The forward pass must also be inside this context. The micro-batch's last pass must be outside of it.
        """
        state = self.accelerator.gradient_state
        kwargs = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}  # as in Trainer.training_step
        synced = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield lambda loss: self.accelerator.backward(loss, **kwargs)
        finally:
            state._set_sync_gradients(synced)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            if prediction_loss_only:
                return loss, None, None
            logps = self.eval_scorer.choice_logps(split_inputs(inputs)[0], model)
        # Trainer would pad batches of different widths with −100, which is a possible log-probability.
        logps = F.pad(logps, (0, self._width - logps.shape[1]), value=-math.inf)
        return loss, logps, torch.zeros(len(logps), dtype=torch.long, device=logps.device)

    def record(
        self, model: nn.Module, metrics: Mapping[str, Tensor], extra: Mapping[str, Any], counts: Tensor | None = None
    ) -> None:
        """Add metrics to the means of the next log line.

        Args:
            model: the model, which is in training or evaluation mode.
            metrics: name → sums over each example's items [B].
            extra: the batch's further fields; in evaluation, row numbers in the dataset.
            counts: [B] number of items of each example. Default: one.
        """
        for name, values in metrics.items():
            sums = values.detach().float()
            rows = torch.zeros_like(sums) if model.training else extra[ROW]
            # The numbers stay on the device: reading them after every batch would synchronise a GPU.
            entry = name, rows, sums, torch.ones_like(sums) if counts is None else counts
            self._recorded["train" if model.training else "eval"].append(entry)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._recorded["eval"].clear()  # of an evaluation that was interrupted
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self._means("eval", f"{metric_key_prefix}_"))
        self._require(math.isfinite(output.metrics.get(f"{metric_key_prefix}_loss", 0.0)), "the loss is")
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs or "train_runtime" in logs:  # of training, also its last line
            logs |= self._means("train", "")
        # The trainer reads the loss for a log line anyway. Reading it in every step would synchronise a GPU.
        self._require(math.isfinite(logs.get("loss", 0.0)), "the loss is")
        super().log(logs, *args, **kwargs)

    def _means(self, mode: str, prefix: str) -> dict[str, float]:
        """Return the means of what was recorded since the last call, by name with a prefix."""
        recorded = [
            (name, *value)
            for name, *columns in self._recorded[mode]
            for value in zip(*(c.tolist() for c in columns), strict=True)
        ]
        values = processes.pool(recorded)
        if mode == "eval":
            # Processes read some rows twice if their number is not a multiple of the batch size. Count each once.
            values = list({(name, row): (name, row, total, count) for name, row, total, count in values}.values())
        sums: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for name, _, total, count in values:
            sums[name] = sums[name][0] + total, sums[name][1] + count
        self._recorded[mode].clear()
        return {f"{prefix}{name}": total / count for name, (total, count) in sums.items()}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().train(*args, **kwargs)
        finally:
            self._progress.stop()
        self._require_finite_weights()
        return result

    def _require(self, is_finite: bool, what: str) -> None:
        """Raise ModelError if `what` is not finite. The last checkpoint is then still finite."""
        if not is_finite:
            raise ModelError(
                f"{self.description}: {what} not finite at step {self.state.global_step} of {self.state.max_steps} "
                f"(peak learning rate {self.args.learning_rate:g}): lower the learning rate or beta, or use another "
                "dtype"
            )

    def _require_finite_weights(self) -> None:
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self._require(all(p.isfinite().all() for p in weights), "a weight is")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._require_finite_weights()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with writing(folder):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        card = folder / "README.md"
        own_card = card.read_bytes() if card.is_file() else None
        own, self.args = self.args, self.args.to_save()
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = own
        # PEFT names the base by its path in this machine's cache, in the configurations and in an empty card.
        for file in (folder / "adapter_config.json", folder / REFERENCE_ADAPTER / "adapter_config.json"):
            if file.is_file():
                config = json.loads(file.read_text(encoding="utf-8"))
                config["base_model_name_or_path"] = base_id(config["base_model_name_or_path"] or "")
                file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                if own_card is None:
                    card.unlink(missing_ok=True)
                else:
                    card.write_bytes(own_card)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimiser, with a separate learning rate for item vectors."""
        # Item vectors start at zero. At the learning rate of the pretrained layers they would hardly change.
        table = item_table(language_model(self.model))
        if table is not None and self.optimizer is None:
            a, of_items = self.args, {id(p) for p in table.parameters()}
            kind, settings = self.get_optimizer_cls_and_kwargs(a, self.model)
            decay = {"weight_decay": a.weight_decay}
            layers = [p for p in self.model.parameters() if p.requires_grad and id(p) not in of_items]
            rate = a.learning_rate if a.item_learning_rate is None else a.item_learning_rate
            of_table = {"params": [*table.parameters()], "lr": rate}
            self.optimizer: Any = kind([{"params": layers} | decay, of_table | decay], **settings)
        return super().create_optimizer(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        a, rows = self.args, self.train_dataset
        if a.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        seed = a.seed if a.data_seed is None else a.data_seed
        lengths = partial(self._lengths, rows) if a.train_sampling_strategy == "group_by_length" else None
        self.sampler = StepSampler(len(rows), self.global_batch, lengths, seed, getattr(rows, "groups", None))
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.compute_metrics is not None or eval_dataset.in_order:  # it may rely on the order of the rows
            return SequentialSampler(eval_dataset)
        return longest_first(range(len(eval_dataset)), self._lengths(eval_dataset))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        rows = self.eval_dataset if eval_dataset is None else self.build_eval_dataset(eval_dataset)
        if rows is None:
            return super().get_eval_dataloader()
        return super().get_eval_dataloader(self._numbered(rows))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        return super().get_test_dataloader(self._numbered(self.build_eval_dataset(test_dataset), in_order=True))

    def _numbered(self, rows: Any, *, in_order: bool = False) -> _Numbered:
        """Return examples with their numbers, and remember the largest number of answers."""
        self._width = max(len(choices.answers) for choices in rows.choice_sets)
        return _Numbered(rows, in_order)

    def _lengths(self, dataset: Any) -> list[int]:
        return [tokens_of(choices) for choices in dataset.choice_sets]

    def _scorer(self) -> ChoiceScorer:
        """Return the scorer of training examples, with its layout checked on the longest one of the first batch."""
        args, rows = self.args, self.train_dataset
        scorer = ChoiceScorer(
            self.model,
            self.encoder.end,
            layout=args.layout,
            max_tokens=getattr(args, "max_tokens_per_pass", None),
            within=self.within,
            share=getattr(rows, "groups", None) is not None,
            is_sharded=self.is_sharded,
        )
        first = range(len(rows))[: args.per_device_train_batch_size]
        with self._autocast():
            scorer.check_layout([question(rows[i]["choices"]) for i in first])
        return scorer

    def _check_base(self) -> None:
        core = language_model(self.model)
        if attention_implementation(core.config) == FLEX and self.args.device.type == "cpu":
            raise ConfigError("flex_attention has no gradients on a CPU: load the model with sdpa")
        if is_quantized(core) and self.is_sharded:
            raise ConfigError(
                "a 4-bit base cannot be sharded over processes: let each process hold the entire model "
                "(configs/accelerate/ddp.yaml), or set `quantization` to none"
            )

    def _in_step(self, passes: list[PackedBatch]) -> list[PackedBatch]:
        """Return the passes, repeating the first one so that all processes have the same number."""
        if not self.is_sharded:
            return passes
        # All processes gather sharded weights in every pass. A process with fewer passes would block the others.
        count = torch.tensor(len(passes), device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        return [passes[0]] * (most - len(passes)) + passes

    def _autocast(self) -> torch.autocast:
        a = self.args
        dtype = torch.float16 if a.fp16 else torch.bfloat16
        return torch.autocast(a.device.type, dtype=dtype, enabled=a.bf16 or a.fp16)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        count = torch.tensor(sum(map(self.count_items, batch_samples)), device=device)
        return self.accelerator.gather(count).sum()


class _Numbered(Dataset[dict[str, Any]]):
    """A dataset of choice sets and their row numbers, which may have to be read in their order."""

    def __init__(self, rows: Any, in_order: bool) -> None:
        self.rows, self.in_order = rows, in_order
        self.choice_sets = rows.choice_sets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], ROW: index}


class _EpochCallback(TrainerCallback):
    """A callback that notifies a trainer of the beginning of an epoch."""

    def __init__(self, trainer: ChoiceTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))


def split_inputs(inputs: Mapping[str, Any]) -> tuple[list[PackedBatch], dict[str, Any]]:
    """Split a collated batch into its passes and its other fields."""
    names = {f.name for f in fields(PackedBatch)}
    first = {k: v for k, v in inputs.items() if k in names}
    passes = [PackedBatch(**values) for values in (first, *inputs.get(FURTHER_PASSES, ()))]
    return passes, {k: v for k, v in inputs.items() if k not in names | {FURTHER_PASSES}}


def _refuse_unknown(options: Mapping[str, Any], config: type[ChoiceTrainingArguments]) -> None:
    """Raise ConfigError for options that `transformers.Trainer` does not have."""
    known = set(inspect.signature(Trainer.__init__).parameters) - {"data_collator", "compute_loss_func"}
    for name in options.keys() - known:
        if name in {f.name for f in fields(config)}:
            raise ConfigError(f"{name} is a field of {config.__name__}: write args={config.__name__}({name}=…)")
        listed = ", ".join(sorted(known))
        raise ConfigError(f"the trainer has no argument {name}: expected one of {listed}{did_you_mean(name, known)}")


def _rows(rows: Any, name: str) -> Any:
    """Return rows; raise ConfigError if they are several datasets in a dictionary."""
    if isinstance(rows, Mapping):
        names = ", ".join(map(str, rows))
        raise ConfigError(
            f"{name} is a dictionary of {names}: give one of them, and evaluate further ones by "
            "`trainer.evaluate(rows, metric_key_prefix='eval_NAME')`"
        )
    return rows


def leave_casting_to_autocast(model: nn.Module) -> None:
    """Prevent PEFT from casting adapter inputs to float32, which autocast would undo."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0: in `nn.Dropout` (Phi), in modules (OPT, Llama) and in configurations (Falcon)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        config = getattr(module, "config", None)
        for holder in (module, config) if isinstance(config, PreTrainedConfig) else (module,):
            for name, value in vars(holder).items():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)
