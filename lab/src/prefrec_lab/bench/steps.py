"""Training steps by each method; each docstring says what is timed."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import TrainerCallback

from prefrec.lm.models import DTYPES
from prefrec.resources import reset_peak
from prefrec.training import SoftmaxDPOConfig, SoftmaxDPOTrainer, lora_config
from prefrec_lab.bench.floor import count_tokens, measure_rates, model_shape
from prefrec_lab.bench.job import Job, Measured, memory_of
from prefrec_lab.bench.published import published_step, trainable
from prefrec_lab.bench.settings import SEPARATE
from prefrec_lab.bench.workload import base_model, config_of, plain_model, tokenizer_of
from prefrec_lab.stopwatch import Stopwatch

BETA = 1.0
LEARNING_RATE = 1e-5


def published(job: Job) -> Measured:
    """Make one optimiser step in plain code; timed from the tokens to the end of the step."""
    model = get_peft_model(plain_model(job.settings), _lora(job)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if job.checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW(trainable(model), lr=LEARNING_RATE)
    end, watch = tokenizer_of(job.settings).eos_token_id, Stopwatch(job.device)
    with memory_of(job) as memory, watch.running():
        _, logps = published_step(model, optimizer, job.choice_sets, pad_id=end, beta=BETA, precision=job.precision)
    facts = {"logps/chosen": float(logps[:, 0].mean())}
    return Measured({"step": watch.read()}, job.rows, memory, facts=facts)


def own_trainer(job: Job) -> Measured:
    """Make one step of `SoftmaxDPOTrainer`: its reference pass with the cache, then the training loop.

    The loop is timed from `on_train_begin` to `on_step_end`: fetching and packing rows, both passes, clipping,
    optimiser and metrics.
    """
    reference, step = Stopwatch(job.device), Stopwatch(job.device)

    class Timed(SoftmaxDPOTrainer):
        def _precompute(self, *args: Any, **kwargs: Any) -> None:
            with reference.running():
                super()._precompute(*args, **kwargs)

    layout = "separate" if job.base == SEPARATE else "auto"
    with tempfile.TemporaryDirectory() as folder:
        settings = _arguments(job, folder, per_device_train_batch_size=job.rows, layout=layout, max_length=None)
        trainer = Timed(
            base_model(job.settings),
            args=SoftmaxDPOConfig(beta=BETA, per_device_eval_batch_size=job.rows, **settings),
            train_dataset=list(job.work.texts[: job.rows]),
            processing_class=tokenizer_of(job.settings),
            peft_config=_lora(job),
            callbacks=[_LoopClock(step)],
        )
        with memory_of(job) as memory:
            trainer.train()
    _check_laps(reference, step)
    return Measured({"reference": reference.read(), "step": step.read()}, job.rows, memory, facts=_chosen(trainer))


def trl_trainer(job: Job) -> Measured:
    """Make one optimiser step of TRL's `DPOTrainer` on the rows' pairs, timed like `own_trainer`.

    The reference part is its `_precompute_ref_logps` (in the constructor). Its metrics are timed as ours are.
    """
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    reference, step = Stopwatch(job.device), Stopwatch(job.device)

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            reset_peak(job.device)
            with reference.running():
                return super()._precompute_ref_logps(*args, **kwargs)

    pairs = explode(job)
    passes = math.ceil(len(pairs) / max(1, job.settings.sequences // 2))
    with tempfile.TemporaryDirectory() as folder:
        settings = _arguments(
            job,
            folder,
            per_device_train_batch_size=math.ceil(len(pairs) / passes),
            gradient_accumulation_steps=passes,
        )
        model = plain_model(job.settings)
        with memory_of(job) as memory:
            trainer = Timed(
                model,
                args=DPOConfig(beta=BETA, max_length=None, precompute_ref_log_probs=True, **settings),
                train_dataset=datasets.Dataset.from_list(pairs),
                processing_class=tokenizer_of(job.settings),
                peft_config=_lora(job),
                callbacks=[_LoopClock(step)],
            )
            trainer.train()
    _check_laps(reference, step)
    every = job.rows * job.negatives
    note = "" if len(pairs) == every else f"{len(pairs)} of {every} pairs, scaled"
    rows = job.rows * len(pairs) / every
    # TRL logs a mean of means over passes of different sizes. The reference's log-probabilities replace it: a new
    # adapter scores as the reference does. The first pair of each row has its chosen answer.
    chosen = trainer.train_dataset["ref_chosen_logps"][: job.rows]
    facts = {"logps/chosen": float(sum(chosen) / job.rows)}
    return Measured({"reference": reference.read(), "step": step.read()}, rows, memory, note=note, facts=facts)


def explode(job: Job) -> list[dict[str, str]]:
    """Return the rows as pairs `prompt, chosen, rejected` for TRL, which joins prompt and answer as they are.

    If fewer pairs are wanted than there are, every row gives its first ones.
    """
    rows = job.work.texts[: job.rows]
    return [
        {"prompt": row["prompt"], "chosen": _answer(row, row["chosen"]), "rejected": _answer(row, row["rejected"][i])}
        for i in range(job.negatives)
        for row in rows
    ][: job.pairs]


def matmul(job: Job) -> Measured:
    """Measure the machine's rates for the products of the packed rows, and for large squares."""
    watch, settings = Stopwatch(job.device), job.settings
    shape = model_shape(config_of(settings), settings.lora_rank)
    tokens = count_tokens(job.work.choice_sets)
    square = 8192 if job.device == "cuda" else 64 if settings.model == "random:tiny" else 2048
    least_s = 0.001 if settings.model == "random:tiny" else 0.1
    with watch.running():
        rates = measure_rates(
            shape, tokens, device=job.device, dtype=DTYPES[settings.dtype], square=square, least_s=least_s
        )
    return Measured({"step": watch.read()}, len(job.work.choice_sets), facts=dict(vars(rates)))


class _LoopClock(TrainerCallback):
    """Times a training loop of one step, from its beginning to the end of the step."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.stop()


def _arguments(job: Job, folder: str, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 0.3,
        "train_sampling_strategy": "sequential",
        "bf16": job.settings.dtype == "bfloat16",
        "gradient_checkpointing": job.checkpointed,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device == "cuda",
        "seed": job.settings.seed,
        **more,
    }


def _lora(job: Job) -> Any:
    return lora_config(job.settings.lora_rank)


def _answer(row: dict[str, Any], title: str) -> str:
    return title if row["prompt"][-1:].isspace() else f" {title}"


def _chosen(trainer: Any) -> dict[str, float]:
    logged = next(entry for entry in trainer.state.log_history if "logps/chosen" in entry)
    return {"logps/chosen": float(logged["logps/chosen"])}


def _check_laps(reference: Stopwatch, step: Stopwatch) -> None:
    """Raise RuntimeError if a trainer did not call the timed functions once; else the times would be wrong."""
    if (reference.laps, step.laps) != (1, 1):
        raise RuntimeError(f"timed {reference.laps} reference passes and {step.laps} steps, expected one of each")
