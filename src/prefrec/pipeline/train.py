"""The two training stages: prepared data and settings in, an adapter or a whole model out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from peft import LoraConfig
from transformers import set_seed

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.files import write_json
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.items import ItemEncoder, ItemTrajectoryEncoder, add_items, item_table
from prefrec.lm.models import resolve_dtype
from prefrec.pipeline.encoders import Encoder, item_vectors, prompt_encoder, shows_candidates
from prefrec.pipeline.entry import Entry
from prefrec.pipeline.log_negatives import log_rows, log_validation_rows
from prefrec.pipeline.negatives import negative_rows
from prefrec.pipeline.recipe import (
    AlignSection,
    LoraSection,
    ModelSection,
    RowsSection,
    SFTSection,
)
from prefrec.processes import from_first
from prefrec.prompts import ChoiceSet, TrajectoryEncoder, load_template
from prefrec.runs.stage import last_checkpoint
from prefrec.training import (
    ChoiceDataset,
    PreferenceDataset,
    SFTConfig,
    SFTTrainer,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    TrajectoryDataset,
    encode_examples,
    lora_config,
    user_histories,
)
from prefrec.training.adapters import is_adapter, load_weights
from prefrec.training.base import ChoiceTrainer
from prefrec.training.best import BEST, KeepBest, read_best, save_weights
from prefrec.training.negatives import redraw_lists
from prefrec.training.section import TrainSection
from prefrec.training.sequences import LEAST

Row = TypeVar("Row")

WEIGHTS = "adapter"
"""Folder of what was trained inside a stage's folder: an adapter, or a whole model."""


def train_sft(
    data: PreparedData,
    model: ModelSection,
    lora: LoraSection | None,
    section: SFTSection,
    out: Path,
    *,
    seed: int,
    start: Path | None = None,
) -> Path:
    """Fine-tune a model on what users took; returns the folder of the weights.

    Args:
        data: prepared rows.
        model: the base.
        lora: a new adapter's form, where none is given; None: all weights are trained.
        section: the settings.
        out: folder of the stage; training goes on from the newest checkpoint in it.
        seed: of rows, order and initial weights.
        start: weights to go on from; None: the base.
    """
    set_seed(seed)
    encoder = prompt_encoder(model, data.catalogue)
    rows = sft_rows(data, model, section, encoder, seed)
    tell_fewer(out.name, section, len(rows.histories if isinstance(rows, TrajectoryDataset) else rows))
    questions = data.some("validation", section.eval_rows) if section.eval_rows else []
    held_out = ChoiceDataset(_encode(questions, data, model, encoder, "target-first")) if questions else None
    trainer = SFTTrainer(
        load_start(data, model, lora, start),
        SFTConfig(**training_arguments(section, model, out, seed, "epoch" if questions else "no")),
        rows,
        held_out,
        encoder.tokenizer,
        new_adapter(lora, start),
        within=catalogue_softmax(data, model, encoder, trained_items(data)),
        eval_within=catalogue_softmax(data, model, encoder, data.catalogue.ids),
        encoder=encoder,
    )
    if held_out is not None:
        trainer.add_callback(KeepBest(trainer, section.patience))
    return train_to_weights(trainer, out)


def sft_rows(
    data: PreparedData, model: ModelSection, section: SFTSection, encoder: Encoder, seed: int
) -> TrajectoryDataset | ChoiceDataset:
    """Return the training rows of SFT: histories, or ranking questions where the prompt lists candidates."""
    if shows_candidates(model, data.domain):
        return ChoiceDataset(_encode(training_rows(data, section, seed), data, model, encoder, "target"))
    histories = [h for h in user_histories(data.train_interactions, data.catalogue) if len(h) >= LEAST]
    return TrajectoryDataset(
        some_rows(histories, section, seed),
        trajectory_encoders(data, model, encoder),
        titles=section.titles,
        drop=section.drop,
        max_length=model.max_length,
        seed=seed,
    )


def trained_items(data: PreparedData) -> list[str]:
    """Return the ids of the items that occur in the training log, in the catalogue's order."""
    known = set(data.train_interactions["item_id"].unique().to_list())
    return [i for i in data.catalogue.ids if i in known]


def catalogue_softmax(
    data: PreparedData, model: ModelSection, encoder: Encoder, items: Sequence[str]
) -> CatalogueSoftmax | None:
    """Return what the tokens of these items' titles compete with; None where that is the whole vocabulary."""
    if model.objective == "tokens":
        return None
    titles = data.catalogue.titles_of(items)
    return CatalogueSoftmax([a for e in trajectory_encoders(data, model, encoder) for a in e.answers(titles)])


def trajectory_encoders(
    data: PreparedData, model: ModelSection, encoder: Encoder
) -> Sequence[TrajectoryEncoder | ItemTrajectoryEncoder]:
    """Return an encoder of histories for each phrasing; items have one."""
    if isinstance(encoder, ItemEncoder):
        return [ItemTrajectoryEncoder(encoder)]
    return [TrajectoryEncoder(load_template(name, domain=data.domain), encoder) for name in model.templates]


def train_align(
    data: PreparedData,
    model: ModelSection,
    lora: LoraSection | None,
    section: AlignSection,
    start: Path | None,
    out: Path,
    *,
    seed: int,
    judge: Entry | None = None,
    references: Path | None = None,
) -> Path:
    """Align a model on chosen and rejected titles; returns the folder of the weights.

    Args:
        data: prepared rows.
        model: the base.
        lora: a new adapter's form, where none is given; None: all weights are trained.
        section: the settings.
        start: the weights to go on from, which are also the reference; None: the bare base is.
        out: folder of the stage; training goes on from the newest checkpoint in it.
        seed: of rows, negatives and order.
        judge: the recommender that chooses the negatives, where `negatives_from` names one.
        references: folder for the reference's log-probabilities, which alignments share; None: in `out`.
    """
    rows = training_rows(data, section, seed)
    tell_fewer(out.name, section, len(rows))
    rows = negative_rows(data, model, section, rows, start, judge, out, seed=seed)
    set_seed(seed)
    encoder = prompt_encoder(model, data.catalogue)

    def dataset(examples: Sequence[RankingExample]) -> PreferenceDataset:
        sets = _encode(examples, data, model, encoder, "target-first")
        return PreferenceDataset(sets, num_negatives=section.num_negatives, negatives=section.negatives, seed=seed)

    asked = {i for row in rows for i in row.candidates} | set(trained_items(data))
    config = SoftmaxDPOConfig(
        **training_arguments(section, model, out, seed, "steps" if section.eval_rows else "no"),
        beta=section.beta,
        loss_type=section.loss,
        num_negatives=section.num_negatives,
        negatives=section.negatives,
        precompute_ref_log_probs=section.precompute_reference,
        reference_folder=str(references) if references else None,
        max_tokens_per_pass=section.max_tokens_per_pass,
    )
    trainer = SoftmaxDPOTrainer(
        load_start(data, model, lora, start),
        config,
        dataset(rows),
        dataset(validation_rows(data, section, seed)) if section.eval_rows else None,
        encoder.tokenizer,
        new_adapter(lora, start),
        within=catalogue_softmax(data, model, encoder, [i for i in data.catalogue.ids if i in asked]),
        eval_within=catalogue_softmax(data, model, encoder, data.catalogue.ids),
        encoder=encoder,
    )
    return train_to_weights(trainer, out)


def validation_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """`eval_rows` validation rows of an alignment.

    Where training has lists drawn that are longer than theirs, theirs are drawn again too: uniformly, so that the
    curves of all ways to draw negatives are over the same questions.
    """
    if section.is_from_log:
        return log_validation_rows(data, section, seed)
    rows = data.some("validation", section.eval_rows)
    size = 1 + section.num_negatives
    if section.drawn_from is None or all(len(e.candidates) >= size for e in rows):
        return list(rows)
    return redraw_lists(rows, data, "uniform", seed=seed, size=size)


def training_rows(data: PreparedData, section: RowsSection, seed: int) -> list[RankingExample]:
    """The rows that a stage trains on: rows `skip_rows … skip_rows + rows` of one seeded order of all.

    With `latest_per_user`, of the last rows of each user, which are nearest to those of validation and test.
    """
    return some_rows(rows_to_choose_from(data, section, seed), section, seed)


def rows_to_choose_from(data: PreparedData, section: RowsSection, seed: int = 0) -> list[RankingExample]:
    """All training rows, or with `latest_per_user` the last ones of each user.

    Rows of an alignment whose negatives the log tells of are made of the log; `seed` draws these.
    """
    rows = data.train
    if isinstance(section, AlignSection) and section.is_from_log:
        rows = log_rows(data, section, seed)
    if section.latest_per_user is None:
        return list(rows)
    left = Counter(row.user_id for row in rows)
    latest = []
    for row in rows:
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


def load_start(data: PreparedData, model: ModelSection, lora: LoraSection | None, start: Path | None) -> Any:
    """Return the model that a stage trains: the base, or the weights that an earlier stage left.

    All weights are trained in float32; the trainer's autocast computes in the model's dtype.
    """
    dtype = model.dtype if lora is not None else "float32"
    found: Any = load_weights(model.name, start, is_trainable=True, **model.loading() | {"dtype": dtype})
    if model.answers == "titles":
        return found
    table = item_table(found)
    if table is None:
        vectors = item_vectors(data, model)
        table = add_items(found, data.catalogue.ids, vectors)
    table.vector_dropout, table.dropout.p = model.items.vector_dropout, model.items.dropout
    return found


def new_adapter(lora: LoraSection | None, start: Path | None) -> LoraConfig | None:
    """Return the form of a new adapter; None where one is trained on, or all weights are."""
    if lora is None or (start is not None and is_adapter(start)):
        return None
    return adapter_config(lora)


def adapter_config(section: LoraSection) -> LoraConfig:
    """Return the form of a new adapter."""
    return lora_config(section.r, section.alpha, section.dropout, section.targets)


def _encode(
    examples: Sequence[RankingExample], data: PreparedData, model: ModelSection, encoder: Encoder, answers: Any
) -> list[ChoiceSet]:
    templates = [load_template(name, domain=data.domain) for name in model.templates]
    sets = encode_examples(examples, data.catalogue, templates, encoder, answers=answers)
    if encoder.shortened:
        say(f"{encoder.shortened} of {len(sets)} histories were shortened to fit {model.max_length} tokens")
        encoder.shortened = 0
    return sets


def training_arguments(
    section: TrainSection, model: ModelSection, out: Path, seed: int, evaluated: str = "no"
) -> dict[str, Any]:
    """Return arguments of an `SFTConfig` or `SoftmaxDPOConfig`, as far as all stages share them.

    Args:
        section, model, out, seed: of the stage.
        evaluated: `eval_strategy`.
    """
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "run_name": out.name,
        "seed": seed,
        "use_cpu": on_cpu,
        "bf16": resolve_dtype(model.dtype) == "bfloat16",
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
        # Item vectors begin at nothing in SFT alone; an alignment moves them as slowly as the layers.
        "item_learning_rate": model.items.learning_rate if isinstance(section, SFTSection) else section.learning_rate,
        "gradient_checkpointing": section.gradient_checkpointing,
        "eval_strategy": evaluated,
        "eval_steps": section.eval_steps,
        "save_strategy": "steps",
        "save_steps": section.save_steps,
        "save_total_limit": 1,
        "logging_steps": 5,
        "dataloader_pin_memory": not on_cpu,
    }


def train_to_weights(trainer: ChoiceTrainer, out: Path) -> Path:
    """Train, from a checkpoint where one is left; keep the best weights, or the last ones, and the log.

    Checkpoints stay until the stage is finished, which deletes them.
    """
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        say(f"Going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    best, weights = out / BEST, out / WEIGHTS
    if from_first(read_best(best)) is None:
        save_weights(trainer, weights)
    elif trainer.is_world_process_zero():
        shutil.rmtree(weights, ignore_errors=True)
        best.rename(weights)
    if trainer.is_world_process_zero():
        write_json(out / "log.json", trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return weights
