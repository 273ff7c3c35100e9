"""`prefrec evaluate-adapters`: evaluate adapters and baselines on prepared data, with intervals and an audit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.cli._output import print_results
from prefrec.console import warn
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.pipeline.measure import evaluate_rankers
from prefrec.pipeline.score import check_names
from prefrec.processes import is_first
from prefrec.rankers.config import NAME
from prefrec.runs.results import METRICS, write_results
from prefrec.runs.stage import STAGE_FILE, check_whole, read_state
from prefrec.sections import SEED, ZERO_SHOT, EvaluateSection, ModelSection
from prefrec.stages.base import MADE_WITH
from prefrec.stages.language_model import LMStage

# The other fields need the rest of a recipe.
Base = Annotated[ModelSection, Parameter(negative_bool="no-", parse="^(?!answers$|items$)")]


def evaluate_adapters(
    data: o.DataFolder,
    /,
    *,
    adapter: Annotated[list[str] | None, Parameter(help="Adapter to evaluate: NAME=FOLDER. Repeatable.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for the results. Default: DATA/evaluation.")] = None,
    seed: o.Seed = SEED,
    as_json: o.AsJson = False,
    section: o.Own[EvaluateSection] = o.untouched(EvaluateSection),
    model: Base = o.untouched(ModelSection),
) -> None:
    """Evaluate adapters and baselines, on the same candidate sets and in full ranking.

    95% intervals are over users and targets. Each model is compared with the best baseline on the same examples, and
    each language model with the one before it. Full ranking excludes items that the user has seen,
    unless the data keep repeats.

    Example: prefrec evaluate-adapters runs/demo --adapter sft=runs/demo/sft/adapter --rows 500
    """
    prepared = read_prepared(data)
    named = [_named(text) for text in adapter or []]
    check_names([*section.baselines, *(name for name, _ in named)])
    adapters = [(name, path, as_trained(model, path)) for name, path in named]
    model = adapters[0][-1] if adapters else model  # the base is queried like the first adapter
    stages = [LMStage(ZERO_SHOT, None, prepared, model)] if section.zero_shot else []
    stages += [LMStage(name, path, prepared, settings) for name, path, settings in adapters]
    folder = out or data / "evaluation"
    results = evaluate_rankers(prepared, section, stages, folder / "predictions", seed=seed)
    if is_first():  # all processes of a job have the results
        write_results(folder, results)
    if as_json:
        o.print_json(results.to_json()[METRICS])
    else:
        print_results(results)
        print(f"Predictions: {folder / 'predictions.parquet'}")


def as_trained(model: ModelSection, weights: Path) -> ModelSection:
    """Return the settings that weights were trained with, overridden by fields set in `model`.

    Print a warning for each field that overrides another value. Weights without recorded settings get `model`. Raise
    ModelError if an adapter must not be read, DataError if the weights of a stage are damaged.
    """
    from prefrec.training.adapters import check_adapter  # here, because it needs torch
    from prefrec.training.weights import is_adapter

    if is_adapter(weights):
        check_adapter(weights)
    if (weights.parent / STAGE_FILE).exists():
        check_whole(weights.parent)
    try:
        recorded = read_state(weights.parent)[MADE_WITH]["model"]
        trained = ModelSection.model_validate(recorded)
    except (KeyError, TypeError, ValidationError):  # not from prefrec, or from another version
        return model
    given = {field: getattr(model, field) for field in model.model_fields_set}
    # `load_adapter` warns of another base.
    for field in sorted((recorded.keys() | {"item_text"}) & given.keys() - {"name"}):
        if (value := getattr(trained, field)) not in (given[field], "auto"):
            name = f"--model.{field.replace('_', '-')}"
            warn(
                escape(
                    f"{name} {given[field]}: {weights} was trained with {value}; omit {name} to evaluate it as it "
                    "was trained"
                )
            )
    return trained.model_copy(update=given)


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not re.match(NAME, name) or not folder:
        raise ConfigError(f"--adapter {text!r}: expected NAME=FOLDER, such as sft=runs/demo/sft/adapter")
    path = Path(folder)
    more = [p.name for p in path.glob("*.safetensors") if "model" not in p.name]
    if more:
        raise ConfigError(
            f"--adapter {name}: {path} has more than a language model ({', '.join(more)}), so it belongs to another "
            "kind of ranker, such as LLaRA; evaluate it with `prefrec run` and a recipe with this kind in `rankers`"
        )
    return name, path
