"""The two training stages: prepared data and settings in, a PEFT adapter out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from peft import LoraConfig
from transformers import set_seed

from prefrec.console import say, warn
from prefrec.data import PreparedData, RankingExample
from prefrec.data.store import writing
from prefrec.models import load_model, load_tokenizer
from prefrec.pipeline.negatives import negative_rows
from prefrec.pipeline.recipe import (
    AlignSection,
    LoraSection,
    ModelSection,
    PretrainSection,
    RowsSection,
    SFTSection,
    TrainSection,
)
from prefrec.pipeline.stage import last_checkpoint, write_json
from prefrec.prompts import ChoiceSet, PromptEncoder, load_template
from prefrec.training import (
    ChoiceDataset,
    PreferenceDataset,
    SFTConfig,
    SFTTrainer,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    encode_examples,
    encode_sequences,
    load_adapter,
    lora_config,
)
from prefrec.training.base import ChoiceTrainer
from prefrec.training.negatives import redraw_lists

Row = TypeVar("Row")

ADAPTER = "adapter"
"""Folder of the trained adapter inside a stage's folder."""


def train_pretrain(
    data: PreparedData, model: ModelSection, lora: LoraSection, section: PretrainSection, out: Path, *, seed: int
) -> Path:
    """Train a new adapter on the training users' histories as running text; returns the adapter's folder.

    Goes on from the newest checkpoint in `out` where there is one.
    """
    if section.eval_rows:
        warn("pretrain: eval_rows has no effect, as all histories are trained on and none is left to validate with")
        section = section.model_copy(update={"eval_rows": 0})
    set_seed(seed)
    encoder = prompt_encoder(model)
    template = load_template(model.templates[0], domain=data.domain)
    sequences = encode_sequences(data.train_interactions, data.catalogue, template, encoder, titles=section.titles)
    rows = some_rows(sequences, section, seed)
    tell_fewer(out.name, section, len(rows))
    trainer = SFTTrainer(
        _base(model, None),
        SFTConfig(**training_arguments(section, model, out, seed)),
        ChoiceDataset(rows),
        None,
        encoder.tokenizer,
        adapter_config(lora),
    )
    return train_to_adapter(trainer, out)


def train_sft(
    data: PreparedData,
    model: ModelSection,
    lora: LoraSection,
    section: SFTSection,
    out: Path,
    *,
    seed: int,
    adapter: Path | None = None,
) -> Path:
    """Fine-tune an adapter on the targets of training rows; returns the adapter's folder.

    Args:
        data: prepared rows.
        model: the base.
        lora: a new adapter's form, where none is given.
        section: the settings.
        out: folder of the stage; training goes on from the newest checkpoint in it.
        seed: of rows, order and initial weights.
        adapter: the adapter to go on from; None: a new one.
    """
    rows = training_rows(data, section, seed)
    tell_fewer(out.name, section, len(rows))
    set_seed(seed)
    encoder = prompt_encoder(model)

    def dataset(examples: Sequence[RankingExample]) -> ChoiceDataset:
        return ChoiceDataset(_encode(examples, data, model, encoder, "target"))

    trainer = SFTTrainer(
        _base(model, adapter),
        SFTConfig(**training_arguments(section, model, out, seed)),
        dataset(rows),
        dataset(data.some("validation", section.eval_rows)) if section.eval_rows else None,
        encoder.tokenizer,
        None if adapter is not None else adapter_config(lora),
    )
    return train_to_adapter(trainer, out)


def train_align(
    data: PreparedData,
    model: ModelSection,
    lora: LoraSection,
    section: AlignSection,
    adapter: Path | None,
    out: Path,
    *,
    seed: int,
    sequential: Path | None = None,
    references: Path | None = None,
) -> Path:
    """Align an adapter on chosen and rejected titles; returns the new adapter's folder.

    Args:
        data: prepared rows.
        model: the base.
        lora: a new adapter's form, where none is given.
        section: the settings.
        adapter: the adapter to go on from, which is also the reference; None: the bare base is.
        out: folder of the stage; training goes on from the newest checkpoint in it.
        seed: of rows, negatives and order.
        sequential: folder of the recommender that chooses the negatives, where `negatives_from` names one.
        references: folder for the reference's log-probabilities, which alignments share; None: in `out`.
    """
    rows = training_rows(data, section, seed)
    tell_fewer(out.name, section, len(rows))
    rows = negative_rows(data, model, section, rows, adapter, sequential, out, seed=seed)
    set_seed(seed)
    encoder = prompt_encoder(model)

    def dataset(examples: Sequence[RankingExample]) -> PreferenceDataset:
        sets = _encode(examples, data, model, encoder, "target-first")
        return PreferenceDataset(sets, num_negatives=section.num_negatives, negatives=section.negatives, seed=seed)

    config = SoftmaxDPOConfig(
        **training_arguments(section, model, out, seed),
        beta=section.beta,
        loss_type=section.loss,
        num_negatives=section.num_negatives,
        negatives=section.negatives,
        precompute_ref_log_probs=section.precompute_reference,
        reference_folder=str(references) if references else None,
        max_tokens_per_pass=section.max_tokens_per_pass,
    )
    trainer = SoftmaxDPOTrainer(
        _base(model, adapter),
        config,
        dataset(rows),
        dataset(validation_rows(data, section, seed)) if section.eval_rows else None,
        encoder.tokenizer,
        None if adapter is not None else adapter_config(lora),
    )
    return train_to_adapter(trainer, out)


def validation_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """`eval_rows` validation rows of an alignment.

    Where training has lists drawn that are longer than theirs, theirs are drawn again too: uniformly, so that the
    curves of all ways to draw negatives are over the same questions.
    """
    rows = data.some("validation", section.eval_rows)
    size = 1 + section.num_negatives
    if section.drawn_from is None or all(len(e.candidates) >= size for e in rows):
        return list(rows)
    return redraw_lists(rows, data, "uniform", seed=seed, size=size)


def training_rows(data: PreparedData, section: RowsSection, seed: int) -> list[RankingExample]:
    """The rows that a stage trains on: rows `skip_rows … skip_rows + rows` of one seeded order of all.

    With `latest_per_user`, of the last rows of each user, which are nearest to those of validation and test.
    """
    return some_rows(rows_to_choose_from(data, section), section, seed)


def rows_to_choose_from(data: PreparedData, section: RowsSection) -> list[RankingExample]:
    """All training rows, or with `latest_per_user` the last ones of each user."""
    if section.latest_per_user is None:
        return list(data.train)
    left = Counter(row.user_id for row in data.train)
    latest = []
    for row in data.train:
        if left[row.user_id] <= section.latest_per_user:
            latest.append(row)
        left[row.user_id] -= 1
    return latest


def some_rows(rows: Sequence[Row], section: TrainSection, seed: int) -> list[Row]:
    """Rows `skip_rows … skip_rows + rows` of one seeded order of all."""
    order = np.random.default_rng((seed, 1)).permutation(len(rows))
    end = None if section.rows is None else section.skip_rows + section.rows
    return [rows[i] for i in order[section.skip_rows : end]]


def tell_fewer(name: str, section: TrainSection, found: int) -> None:
    """Say it where a stage finds fewer rows than it is to take."""
    if section.rows is not None and found < section.rows:
        after = f" after the {section.skip_rows} of skip_rows" if section.skip_rows else ""
        say(f"{name}: {found} rows, not the {section.rows} asked for: there are no more{after}")


def prompt_encoder(model: ModelSection) -> PromptEncoder:
    """The encoder of a model's prompts."""
    return PromptEncoder(load_tokenizer(model.name), max_length=model.max_length, chat=model.chat)


def _base(model: ModelSection, adapter: Path | None) -> Any:
    base: Any = load_model(model.name, **model.loading())
    return base if adapter is None else load_adapter(base, adapter, is_trainable=True)


def adapter_config(section: LoraSection) -> LoraConfig:
    """The form of a new adapter."""
    return lora_config(section.r, section.alpha, section.dropout, section.targets)


def _encode(
    examples: Sequence[RankingExample], data: PreparedData, model: ModelSection, encoder: PromptEncoder, answers: Any
) -> list[ChoiceSet]:
    templates = [load_template(name, domain=data.domain) for name in model.templates]
    sets = encode_examples(examples, data.catalogue, templates, encoder, answers=answers)
    if encoder.shortened:
        say(f"{encoder.shortened} of {len(sets)} histories were shortened to fit {model.max_length} tokens")
        encoder.shortened = 0
    return sets


def training_arguments(section: TrainSection, model: ModelSection, out: Path, seed: int) -> dict[str, Any]:
    """Arguments of an `SFTConfig` or `SoftmaxDPOConfig`, as far as all stages share them."""
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "run_name": out.name,
        "seed": seed,
        "use_cpu": on_cpu,
        "bf16": model.dtype == "bfloat16",
        "fp16": model.dtype == "float16",
        "max_length": model.max_length,
        "chat": model.chat,
        "num_train_epochs": section.epochs,
        "learning_rate": section.learning_rate,
        "global_batch_size": section.global_batch_size,
        "per_device_train_batch_size": section.per_device_batch_size,
        "per_device_eval_batch_size": 2 * section.per_device_batch_size,
        "warmup_steps": section.warmup,
        "max_grad_norm": section.max_grad_norm,
        "weight_decay": section.weight_decay,
        "disable_dropout": section.disable_dropout,
        "gradient_checkpointing": section.gradient_checkpointing,
        "eval_strategy": "steps" if section.eval_rows else "no",
        "eval_steps": section.eval_steps,
        "save_strategy": "steps",
        "save_steps": section.save_steps,
        "save_total_limit": 1,
        "logging_steps": 5,
        "dataloader_pin_memory": not on_cpu,
    }


def train_to_adapter(trainer: ChoiceTrainer, out: Path) -> Path:
    """Train, from a checkpoint where one is left; keep the adapter and the log.

    Checkpoints stay until the stage is finished, which deletes them.
    """
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        say(f"Going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    adapter = out / ADAPTER
    # Of weights that are shared out all processes bring their part.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        scratch = out / f".{ADAPTER}"
        shutil.rmtree(scratch, ignore_errors=True)
        model = trainer.accelerator.unwrap_model(cast(Any, trainer.model))
        with writing(adapter):
            model.save_pretrained(str(scratch), selected_adapters=["default"], state_dict=weights)
        shutil.rmtree(adapter, ignore_errors=True)
        scratch.rename(adapter)
        write_json(out / "log.json", trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return adapter
