"""Train the two stages, SFT and alignment: prepared data and settings in, an adapter or a whole model out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import set_seed

from prefrec import processes, training
from prefrec.console import quiet_libraries, say
from prefrec.data import PreparedData, RankingExample
from prefrec.data.update import read_by_sft
from prefrec.files import write_json
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.items import ItemEncoder, ItemTrajectoryEncoder, add_items
from prefrec.lm.models import default_device, resolve_dtype
from prefrec.lm.packing import tokens_of
from prefrec.losses import OPTIONS
from prefrec.processes import from_first
from prefrec.prompts import ChoiceSet, TrajectoryEncoder, load_template
from prefrec.runs.stage import last_checkpoint
from prefrec.sections import AlignSection, LoraSection, ModelSection, SFTSection
from prefrec.stages.base import WEIGHTS, RankerStage
from prefrec.stages.encoders import Encoder, fit_items, item_vectors, prompt_encoder
from prefrec.stages.inputs import RunInputs
from prefrec.stages.item_texts import shows_candidates
from prefrec.stages.negatives import answer_scores, negative_rows
from prefrec.stages.training_rows import (
    alignment_rows,
    is_packed,
    print_fewer,
    some_rows,
    training_rows,
    validation_rows,
)
from prefrec.training.base import ChoiceTrainer
from prefrec.training.batch import room_for, rows_per_pass
from prefrec.training.defaults import LEAST
from prefrec.training.keep_best import BEST, KeepBest, read_best, save_weights
from prefrec.training.section import TrainSection
from prefrec.training.weights import is_adapter, load_weights

_PASSED_ON = {"learning_rate", "global_batch_size", "max_grad_norm", "weight_decay", "disable_dropout"}
_PASSED_ON |= {"gradient_checkpointing", "eval_steps", "save_steps", "report_to"}
_ALIGN_ALONE = {"num_negatives", "negatives", "max_tokens_per_pass", "item_learning_rate"}
"""Settings that a section and the trainer's arguments share under one name."""
SOME = 64
"""Number of examples whose tokens are counted to choose the batch size of a pass."""


def train_sft(inputs: RunInputs, section: SFTSection, out: Path, start: Path | None = None) -> Path:
    """Fine-tune a model on the items that users interacted with; return the folder of the weights.

    Training resumes from the newest checkpoint in `out`.

    Args:
        inputs: shared inputs of the run.
        section: settings of the stage.
        out: folder of the stage.
        start: folder of the initial weights. Default: the base model.
    """
    return train_to_weights(sft_trainer(inputs, section, out, start), out)


def sft_trainer(
    inputs: RunInputs, section: SFTSection, out: Path, start: Path | None = None, vectors: Tensor | None = None
) -> training.SFTTrainer:
    """Return the trainer of `train_sft`, with its model loaded. `vectors`: of items, as for `load_start`."""
    data, model, seed = inputs.data, inputs.model, inputs.seed
    set_seed(seed)
    encoder = prompt_encoder(model, data.catalogue)
    rows: training.ChoiceDataset | training.TrajectoryDataset
    if shows_candidates(model, data.domain):
        rows = training.ChoiceDataset(_encode(training_rows(data, section, seed), data, model, encoder, "target"))
        count = len(rows)
    else:
        log = read_by_sft(data.train_interactions, section.titles)
        histories = [h for h in training.user_histories(log, data.catalogue) if len(h) >= LEAST]
        rows = training.TrajectoryDataset(
            some_rows(histories, section, seed),
            trajectory_encoders(data, model, encoder),
            titles=section.titles,
            drop=section.drop,
            max_length=model.max_length,
            seed=seed,
        )
        count = len(rows.histories)
    print_fewer(out.name, section, count)
    # Items without interactions do not compete with a title in training, or new items could never rank high.
    rows.encoded_by(encoder, catalogue_softmax(data, model, encoder, trained_items(data)))
    questions = data.examples("validation", section.eval_rows) if section.eval_rows else []
    answers = "target" if section.metric_for_best_model == "loss" else "target-first"
    held_out = training.ChoiceDataset(_encode(questions, data, model, encoder, answers)) if questions else None
    if held_out is not None:
        held_out.encoded_by(encoder, catalogue_softmax(data, model, encoder, data.catalogue.ids))
    base = load_start(inputs, start, vectors)
    trainer = training.SFTTrainer(
        base,
        training.SFTConfig(
            **training_arguments(section, model, out, seed, "epoch" if questions else "no")
            | batch_sizes(section, base, rows),
            item_learning_rate=model.items.learning_rate,
        ),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=encoder.tokenizer,
        peft_config=new_adapter(inputs.lora, start),
    )
    if held_out is not None:
        trainer.add_callback(KeepBest(trainer, section.patience))
    return trainer


def train_align(
    inputs: RunInputs,
    section: AlignSection,
    start: Path | None,
    out: Path,
    *,
    miner: RankerStage | None = None,
    references: Path | None = None,
) -> Path:
    """Align a model on chosen and rejected titles; return the folder of the weights.

    Training resumes from the newest checkpoint in `out`.

    Args:
        inputs: shared inputs of the run.
        section: settings of the alignment.
        start: folder of the initial weights, which are also the reference; None: the base model.
        out: folder of the stage.
        miner: ranker that mines the negatives, if the section names one.
        references: folder for the starting model's log-probabilities, which alignments can share. Default: `out`.
    """
    trainer = align_trainer(inputs, section, start, out, miner=miner, references=references)
    return train_to_weights(trainer, out)


def align_trainer(
    inputs: RunInputs,
    section: AlignSection,
    start: Path | None,
    out: Path,
    *,
    miner: RankerStage | None = None,
    references: Path | None = None,
    vectors: Tensor | None = None,
) -> training.SoftmaxDPOTrainer:
    """Return the trainer of `train_align`, with its model loaded. `vectors`: of items, as for `load_start`."""
    data, model, seed = inputs.data, inputs.model, inputs.seed
    rows = alignment_rows(data, section, seed)
    print_fewer(out.name, section, len(rows))
    rows = negative_rows(inputs, section, rows, start, miner, out)
    groups = training.trajectories(rows) if is_packed(data, section) else None
    # Seed after negatives were sampled: a resumed stage does not sample, and must train with the same random numbers.
    set_seed(seed)
    encoder = prompt_encoder(model, data.catalogue)
    listed = {i for row in rows for i in row.candidates} | set(trained_items(data))

    def dataset(examples: Sequence[RankingExample], held_out: bool = False) -> training.PreferenceDataset:
        sequences = None if held_out else groups
        # Each answer must be among the titles that compete; a candidate set can hold items outside the log.
        ids = data.catalogue.ids if held_out else [i for i in data.catalogue.ids if i in listed]
        scores = answer_scores(examples, data, section, held_out=held_out)
        return training.PreferenceDataset(
            _encode(examples, data, model, encoder, "target-first", sequences),
            # Examples from the log may have fewer than `num_negatives` rejected items.
            num_negatives=None if section.is_from_log else section.num_negatives,
            negatives=section.negatives,
            seed=seed,
            scores=scores,
            groups=sequences,
        ).encoded_by(encoder, catalogue_softmax(data, model, encoder, ids))

    questions = validation_rows(data, section, seed) if section.eval_rows else []
    often = "no" if not questions else "epoch" if section.load_best_model_at_end else "steps"
    base = load_start(inputs, start, vectors)
    preferences = dataset(rows)
    config = training.SoftmaxDPOConfig(
        **training_arguments(section, model, out, seed, often) | batch_sizes(section, base, preferences),
        **section.model_dump(include={"beta", *OPTIONS, *_ALIGN_ALONE}),
        loss_type=section.loss,
        precompute_ref_log_probs=section.precompute_reference,
        reference_folder=str(references) if references else None,
    )
    trainer = training.SoftmaxDPOTrainer(
        base,
        args=config,
        train_dataset=preferences,
        eval_dataset=dataset(questions, held_out=True) if questions else None,
        processing_class=encoder.tokenizer,
        peft_config=new_adapter(inputs.lora, start),
    )
    if section.load_best_model_at_end and questions:
        trainer.add_callback(KeepBest(trainer))
    return trainer


def chosen_epochs(weights: Path | None) -> float | None:
    """Return the epoch that validation examples chose for the weights in a folder; None if they chose none."""
    best = read_best(weights) if weights else None
    return float(best["epoch"]) if best else None


def trained_items(data: PreparedData) -> list[str]:
    """Return the ids of the items in the training log, in the catalogue's order."""
    known = set(data.train_interactions["item_id"].unique().to_list())
    return [i for i in data.catalogue.ids if i in known]


def catalogue_softmax(
    data: PreparedData, model: ModelSection, encoder: Encoder, items: Sequence[str]
) -> CatalogueSoftmax | None:
    """Return the softmax over the titles of these items; None if tokens compete with the whole vocabulary."""
    if model.objective == "tokens":
        return None
    titles = data.catalogue.titles_of(items)
    return CatalogueSoftmax([a for e in trajectory_encoders(data, model, encoder) for a in e.answers(titles)])


def trajectory_encoders(
    data: PreparedData, model: ModelSection, encoder: Encoder
) -> Sequence[TrajectoryEncoder | ItemTrajectoryEncoder]:
    """Return an encoder of histories per template, or the only one for item-ID tokens."""
    if isinstance(encoder, ItemEncoder):
        return [ItemTrajectoryEncoder(encoder)]
    return [TrajectoryEncoder(load_template(name, domain=data.domain), encoder) for name in model.templates]


def load_start(inputs: RunInputs, start: Path | None, vectors: Tensor | None = None) -> Any:
    """Return the model that a stage trains: the base, or one with the weights in the folder `start`.

    `vectors`: initial vectors [I, T] of the items of a new table. Default: `item_vectors`.
    """
    model = inputs.model
    # Without an adapter, weights stay in float32, and the trainer's autocast computes in the model's dtype.
    dtype = model.dtype if inputs.lora is not None else "float32"
    loaded: Any = load_weights(model.name, start, is_trainable=True, **model.loading() | {"dtype": dtype})
    if model.answers == "items":
        table = fit_items(loaded, inputs.data, model)
        if table is None:
            vectors = item_vectors(inputs.data, model) if vectors is None else vectors
            table = add_items(loaded, inputs.data.catalogue.ids, vectors)
        table.vector_dropout, table.dropout.p = model.items.vector_dropout, model.items.dropout
    return loaded


def new_adapter(lora: LoraSection | None, start: Path | None) -> LoraConfig | None:
    """Return the configuration of a new adapter; None if `start` has one, or all weights are trained."""
    if lora is None or (start is not None and is_adapter(start)):
        return None
    return training.lora_config(**lora.model_dump())


def _encode(
    examples: Sequence[RankingExample],
    data: PreparedData,
    model: ModelSection,
    encoder: Encoder,
    answers: Any,
    groups: Sequence[int] | None = None,
) -> list[ChoiceSet]:
    templates = [load_template(name, domain=data.domain) for name in model.templates]
    sets = training.encode_examples(examples, data.catalogue, templates, encoder, answers=answers, groups=groups)
    if encoder.shortened:
        say(f"{encoder.shortened} of {len(sets)} histories were shortened to fit {model.max_length} tokens")
        encoder.shortened = 0
    return sets


def training_arguments(
    section: TrainSection, model: ModelSection, out: Path, seed: int, eval_strategy: str = "no"
) -> dict[str, Any]:
    """Return the arguments of `SFTConfig` and `SoftmaxDPOConfig` that all stages share."""
    on_cpu = not torch.cuda.is_available()
    return section.model_dump(include=_PASSED_ON) | {
        "output_dir": str(out),
        "run_name": out.name,
        "seed": seed,
        "use_cpu": on_cpu,
        "bf16": resolve_dtype(model.dtype) == "bfloat16",
        "fp16": model.dtype == "float16",
        "max_length": model.max_length,
        "chat": model.chat,
        "num_train_epochs": section.epochs,
        **_sizes(section.per_device_batch_size),
        "warmup_steps": section.warmup,
        "eval_strategy": eval_strategy,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_steps": 5,
        "dataloader_num_workers": 0 if on_cpu else 1,  # packs the next rows while a GPU works
    }


def batch_sizes(section: TrainSection, base: Any, rows: Any) -> dict[str, int]:
    """Return the arguments for batch sizes. If the recipe does not set them, a GPU gets more (`rows_per_pass`)."""
    size = section.per_device_batch_size
    is_left_open = "per_device_batch_size" not in section.model_fields_set
    if is_left_open and default_device().type == "cuda":
        tokens = float(np.mean([tokens_of(row) for row in rows.choice_sets[:SOME]]))
        room = room_for(base, torch.cuda.mem_get_info()[0])
        size = rows_per_pass(size, section.global_batch_size // processes.count(), tokens, room)
    return _sizes(size)


def _sizes(rows: int) -> dict[str, int]:
    return {"per_device_train_batch_size": rows, "per_device_eval_batch_size": 2 * rows}


@quiet_libraries()
def train_to_weights(trainer: ChoiceTrainer, out: Path) -> Path:
    """Train, and write the log and the weights: the best ones if they were chosen, else the last ones.

    Training resumes from the last checkpoint, if there is one. Checkpoints stay until the stage is finished.
    """
    checkpoint = last_checkpoint(out)
    best, weights = out / BEST, out / WEIGHTS
    if from_first(checkpoint and not best.is_dir() and read_best(weights)):
        return weights  # a kill came after the chosen weights were moved: the log and they are complete
    if checkpoint is not None:
        say(f"Resuming from {checkpoint}")
    elif trainer.is_world_process_zero():
        shutil.rmtree(weights, ignore_errors=True)  # of a damaged result: they must not count as chosen later
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        write_json(out / "log.json", trainer.state.log_history)
    if from_first(read_best(best)) is None:
        save_weights(trainer, weights)
    elif trainer.is_world_process_zero():
        shutil.rmtree(weights, ignore_errors=True)
        best.rename(weights)
    trainer.accelerator.wait_for_everyone()
    return weights
