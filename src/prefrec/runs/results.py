"""The results of a run's evaluation as one object, and their files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml

from prefrec.equality import ByValue
from prefrec.errors import DataError, first_words
from prefrec.evaluation import Evaluation, read_predictions
from prefrec.evaluation.best import Best
from prefrec.evaluation.by_user import UserSpread
from prefrec.evaluation.predictions import PREDICTION_SCHEMA
from prefrec.evaluation.preferences import Preferences
from prefrec.files import SEAL, Writer, altered, as_json, digests, read_seal, read_whole, write_json, write_together

T = TypeVar("T")

METRICS, PREFERENCES, PREDICTIONS, UPDATE, BEST = RESULTS = (
    "metrics.json",
    "preferences.json",
    "predictions.parquet",
    "update.json",
    "best.json",
)
"""Files of an evaluation. Their SHA-256 are in the folder's `seal.json`."""


@dataclass(frozen=True, eq=False)
class Results(ByValue):
    """The results of a run's evaluation. What was not measured, or cannot be read, is None or {}.

    Attributes:
        split: the split under test.
        evaluation, full_catalogue, generation: metrics on candidate sets, in full ranking, and of generated text.
        beyond_accuracy: ranker → coverage, novelty and diversity of its best items (`prefrec.evaluation.beyond`).
        by_user: ranker → how full ranking is spread over users (`prefrec.evaluation.by_user`).
        made_of: part of the run → hash of what the metrics depend on; None outside a run.
        preferences: how scores rank liked above disliked items.
        update: group of examples → the last language models before and after an update.
        best: the best ranker on validation examples.
        predictions: those of all rankers, a frame of `PREDICTION_SCHEMA`.
    """

    split: str = "test"
    evaluation: Evaluation | None = None
    full_catalogue: Evaluation | None = None
    generation: Evaluation | None = None
    beyond_accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    by_user: dict[str, UserSpread] = field(default_factory=dict)
    made_of: dict[str, str] | None = None
    preferences: Preferences | None = None
    update: dict[str, Evaluation] = field(default_factory=dict)
    best: Best | None = None
    predictions: pl.DataFrame | None = None

    def __repr__(self) -> str:
        shown = [repr(block) for block in (self.evaluation, self.full_catalogue) if block]
        return "\n\n".join([*shown, *([f"{self.best.sentence}."] if self.best else [])]) or "no results"

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return name of a file → its content, of all files but the predictions; `read_results` is the inverse."""
        files: dict[str, dict[str, Any]] = {}
        if self.evaluation:
            blocks = {name: getattr(self, name) for name in _BLOCKS}
            files[METRICS] = {
                "verdict": self.evaluation.audit.verdict,
                "split": self.split,
                **{name: block.to_json() if block else None for name, block in blocks.items()},
                "beyond_accuracy": self.beyond_accuracy,
                "by_user": {ranker: spread.to_json() for ranker, spread in self.by_user.items()},
                **({} if self.made_of is None else {"made_of": self.made_of}),
            }
        if self.preferences:
            files[PREFERENCES] = self.preferences.to_json() | {"split": self.split}
        if self.update:
            files[UPDATE] = {group: compared.to_json() for group, compared in self.update.items()}
        if self.best:
            files[BEST] = self.best.to_json()
        return files


_BLOCKS = ("evaluation", "full_catalogue", "generation")


def write_results(folder: Path, results: Results) -> None:
    """Write the files of results, then their seal, and remove those of earlier results."""
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Writer] = {}
    if results.predictions is not None:
        writers[PREDICTIONS] = results.predictions.select(PREDICTION_SCHEMA.names()).write_parquet
    # Write drafts directly: a draft of a draft would be left after a kill.
    texts = {name: as_json(value) for name, value in results.to_json().items()}
    writers |= {name: partial(Path.write_text, data=text, encoding="utf-8") for name, text in texts.items()}
    # After a kill, metrics must not be beside predictions of another evaluation.
    write_together({folder / n: w for n, w in writers.items()}, [folder / n for n in (SEAL, *RESULTS)])
    write_json(folder / SEAL, {"files": digests(folder, writers)})


def read_results(folder: Path, missing: list[str]) -> Results:
    """Return the results in a folder; for each file that cannot be read, add a sentence to `missing`."""
    fields: dict[str, Any] = {}
    for name, read in _READERS.items():
        # The other files are written only if there is something to write.
        if name in (METRICS, PREDICTIONS) or (folder / name).is_file():
            fields |= read_part(folder, name, missing, read) or {}
    return Results(**fields)


def _metrics(path: Path) -> dict[str, Any]:
    value, made_of = _result(path), None
    if isinstance(value.get("made_of"), dict):
        made_of = value["made_of"]
    blocks = {name: Evaluation.from_json(value[name]) for name in _BLOCKS if value.get(name) or name == _BLOCKS[0]}
    beyond = value.get("beyond_accuracy") or {}
    by_user = {ranker: UserSpread.from_json(spread) for ranker, spread in (value.get("by_user") or {}).items()}
    known = {"beyond_accuracy": beyond, "by_user": by_user, "made_of": made_of}
    return {"split": str(value.get("split", "test")), **known, **blocks}


def _best(path: Path) -> dict[str, Any]:
    value = _result(path)
    if "leads" not in value:
        raise DataError("an earlier prefrec chose it on candidate sets; `prefrec run` chooses by full ranking")
    return {"best": Best.from_json(value)}


def _update(path: Path) -> dict[str, Any]:
    return {"update": {group: Evaluation.from_json(value) for group, value in _result(path).items()}}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    METRICS: _metrics,
    PREDICTIONS: lambda path: {"predictions": read_predictions(_checked(path))},
    PREFERENCES: lambda path: {"preferences": Preferences.from_json(_result(path))},
    BEST: _best,
    UPDATE: _update,
}
"""File → function that returns the fields of `Results` in it."""


def _result(path: Path) -> dict[str, Any]:
    return dict(json_value(_checked(path)))


def _checked(path: Path) -> Path:
    """Return the path of a result file; raise DataError if it differs from what the evaluation wrote."""
    if path.exists() and altered(path.parent, {path.name: read_seal(path.parent).get(path.name)}):
        raise DataError(f"{path} is damaged, or the evaluation did not finish: evaluate again (`prefrec run`)")
    return path


def json_value(path: Path, kind: type = dict) -> Any:
    """Return the JSON value in a file; raise DataError if it is not of this kind."""
    value = json.loads(read_whole(path))
    if not isinstance(value, kind):
        raise DataError(f"expected a JSON {'object' if kind is dict else 'list'}, got {type(value).__name__}")
    return value


def read_part(folder: Path, part: str, missing: list[str], read: Callable[[Path], T]) -> T | None:
    """Return a part of the folder, read by `read`; on failure, return None and add a sentence to `missing`."""
    path = folder / part
    if not path.exists():
        missing.append(f"{part} is missing")
        return None
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as e:
        missing.append(f"{part} cannot be read: {first_words(e).replace(f'{folder}/', '')}")
        return None
