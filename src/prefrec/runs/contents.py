"""What a run's folder holds: everything that can be read, and a sentence for each part that cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml

from prefrec.data import PreparedData, prepared_digest, read_prepared
from prefrec.data.readers import first_words
from prefrec.errors import DataError
from prefrec.evaluation import Evaluation, read_predictions
from prefrec.evaluation.preferences import Preferences
from prefrec.files import read_json
from prefrec.rankers.fuse import FUSE_FILE, fusion_sentence
from prefrec.runs.stage import PREVIOUS, STAGE_FILE, stage_key

T = TypeVar("T")

EXPECTED = ("recipe.yaml", "environment.json", "data/", "sft/", "align/NAME/", "metrics.json", "predictions.parquet")
"""The parts of a run's folder."""

METRICS, PREFERENCES = "metrics.json", "preferences.json"
_STAGE_FOLDERS = ("data", "sft", "sequential/*", "align/*", "rankers/*")


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        name: `sft`, or the name of an alignment; its ranker in the tables has the same name.
        kind: `sft` or `align`.
        state: what `stage.json` says (`finished`, `seconds`, `config`).
        log: the Trainer's `log_history`, empty where training has not come to its end.
    """

    name: str
    kind: str
    state: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def setting(self, name: str) -> Any:
        """A setting of the stage, from its configuration or a section of it; None where it is not said."""
        config = self.state.get("config") or {}
        sections = [config, *(v for v in config.values() if isinstance(v, dict))]
        return next((s[name] for s in sections if name in s), None)

    def points(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every log entry that has `key`."""
        return [(float(e["step"]), float(e[key])) for e in self.log if _number(e.get(key)) and _number(e.get("step"))]


@dataclass(frozen=True)
class RunContents:
    """The parts of a run that are there.

    Attributes:
        folder: of the run.
        recipe, recipe_text: the recipe, parsed and as written.
        environment: versions, seed and commit.
        data: the prepared data.
        stages: SFT first, then alignments in the recipe's order.
        split: which rows were evaluated.
        evaluation, generation: metrics from log-probabilities, and from generated text.
        predictions: of all rankers, a frame of `PREDICTION_SCHEMA`.
        missing: one sentence for each part that is absent, unfinished or damaged.
        machines: machine and versions that finished each stage, by its folder; those of before this was noted lack.
        preferences: how well liked items were told from disliked ones; None where that was not measured.
        fusions: one sentence for each fuse entry of the recipe: its weights, and what chose them.
        full_catalogue: metrics over the whole catalogue.
        outdated: what has changed since the rankers were evaluated; metrics and predictions count as missing then.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    data: PreparedData | None
    stages: list[Stage]
    split: str
    evaluation: Evaluation | None
    generation: Evaluation | None
    predictions: pl.DataFrame | None
    missing: list[str]
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    fusions: list[str] = field(default_factory=list)
    outdated: str = ""
    full_catalogue: Evaluation | None = None
    preferences: Preferences | None = None

    @property
    def alignments(self) -> list[Stage]:
        """The alignment stages."""
        return [s for s in self.stages if s.kind == "align"]

    @property
    def further(self) -> list[str]:
        """Names of the recipe's `rankers`."""
        return _named(self.recipe, "rankers")

    @property
    def model(self) -> str:
        """The base model's name, "" where the recipe does not say it."""
        section = self.recipe.get("model", "")
        return str(section.get("name", "")) if isinstance(section, dict) else str(section)


def read_run(folder: Path) -> RunContents:
    """The contents of a run's folder.

    Raises:
        DataError: no such folder, or it holds no part of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `prefrec run RECIPE.yaml` makes one")
    if not _any_part(folder):
        raise DataError(
            f"{folder} is not the folder of a run: expected at least one of {', '.join(EXPECTED)}; "
            "`prefrec run RECIPE.yaml` writes them"
        )
    reader = _Reader(folder)
    text = reader.read("recipe.yaml", lambda p: p.read_text(encoding="utf-8")) or ""
    recipe = _parse_recipe(text, reader.missing)
    environment = reader.read("environment.json", _read_object) or {}
    data = reader.read("data", read_prepared)
    stages = reader.stages(recipe)
    nothing = ("test", None, None, None, None)
    split, evaluation, full_catalogue, generation, known = reader.read(METRICS, _read_metrics) or nothing
    predictions = reader.read("predictions.parquet", read_predictions)
    there = (folder / PREFERENCES).is_file()
    preferences = reader.read(PREFERENCES, _read_preferences) if there else None
    outdated = _outdated(known, made_of(folder, recipe))
    if outdated:
        split, evaluation, full_catalogue, generation = "test", None, None, None
        predictions = preferences = None
        reader.missing.append(f"metrics.json and predictions.parquet are left out: {outdated}")
    return RunContents(
        folder,
        recipe,
        text,
        environment,
        data,
        stages,
        split,
        evaluation,
        generation,
        predictions,
        reader.missing,
        {part: state["environment"] for part, state in _states(folder, recipe).items() if _made_by(state)},
        reader.fusions(recipe),
        outdated,
        full_catalogue,
        preferences,
    )


def made_of(folder: Path, recipe: dict[str, Any], data_key: str | None = None) -> dict[str, str]:
    """What decides the metrics of a run: its recipe, prepared data and stages, each with its hash.

    What the folder lacks is left out. Where the data lie is the recipe's matter; users of them, the recipe's name
    and rows a pass decide nothing.

    Args:
        folder: of the run.
        recipe: parsed, as `recipe.yaml` holds it.
        data_key: of the prepared data (`prepared_digest`); None: that of the folder's.
    """
    found = {part: str(state["key"]) for part, state in _states(folder, recipe).items() if "key" in state}
    found.pop("data", None)  # changes where the same rows come from other files
    with suppress(OSError, ValueError, AttributeError):
        found["data"] = data_key or prepared_digest(folder / "data")
    idle = {"data": "users", "evaluate": "batch_size"}
    told = {k: _without(v, idle.get(k)) for k, v in recipe.items() if k != "name"}
    with suppress(TypeError, ValueError, RecursionError):
        found |= {"recipe": stage_key(recipe=told)} if told else {}
    return found


def _without(section: Any, name: str | None) -> Any:
    return {k: v for k, v in section.items() if k != name} if isinstance(section, dict) else section


def _outdated(known: Any, now: dict[str, str]) -> str:
    """What has changed since the run was evaluated, in words; "" where nothing has, or it is not known.

    Metrics from before `made_of` was noted are taken as they are.
    """
    changed = [p for p, key in now.items() if known.get(p, key) != key] if isinstance(known, dict) else []
    if not changed:
        return ""
    return f"{', '.join(changed)} changed since they were made; `prefrec run` with this recipe evaluates again"


def _states(folder: Path, recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `stage.json` says of each stage that the recipe asks for, by its folder in the run's."""
    wanted = {"data", *(["sft"] if recipe.get("sft") else [])}
    for section, field_name in (("sequential", "model"), ("align", "name"), ("rankers", "name")):
        wanted |= {f"{section}/{name}" for name in _named(recipe, section, field_name)}
    places = {str(p.relative_to(folder)): p for pattern in _STAGE_FOLDERS for p in sorted(folder.glob(pattern))}
    found: dict[str, dict[str, Any]] = {}
    for part, place in places.items():
        with suppress(OSError, RecursionError):
            state = read_json(place / STAGE_FILE) if part in wanted else None
            found |= {part: state} if isinstance(state, dict) else {}
    return found


def _named(recipe: dict[str, Any], section: str, field_name: str = "name") -> list[str]:
    """What a field of a section's entries says, whatever else the recipe holds."""
    entries = recipe.get(section)
    return [str(e.get(field_name)) for e in (entries if isinstance(entries, list) else []) if isinstance(e, dict)]


def _made_by(state: dict[str, Any]) -> bool:
    return bool(state.get("finished")) and isinstance(state.get("environment"), dict)


class _Reader:
    """Reads parts of a folder and keeps a note of those that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []

    def read(self, part: str, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a part; None, with a note, where that fails."""
        path = self.folder / part
        if not path.exists():
            self.missing.append(f"{part} is missing")
            return None
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            reason = str(e).replace(f"{self.folder}/", "").splitlines()[:1] or [type(e).__name__]
            self.missing.append(f"{part} cannot be read: {reason[0]}")
            return None

    def stages(self, recipe: dict[str, Any]) -> list[Stage]:
        """All stages there are; a stage that the recipe names and the folder lacks is noted."""
        sections = recipe.get("align")
        planned = [str(s["name"]) for s in sections or [] if isinstance(s, dict) and "name" in s]
        found = sorted(p.name for p in self.folder.glob("align/*") if p.is_dir() and p.suffix != PREVIOUS)
        names = list(dict.fromkeys([*planned, *found]))
        wanted = [("sft", "sft", "sft")] if recipe.get("sft") or (self.folder / "sft").is_dir() else []
        wanted += [(f"align/{name}", name, "align") for name in names if not name.startswith(".")]
        return [s for part, name, kind in wanted if (s := self._stage(part, name, kind))]

    def fusions(self, recipe: dict[str, Any]) -> list[str]:
        """Return a sentence for each of the recipe's `rankers` that has chosen weights."""
        # Names come from a file that may be anybody's: only folders that are there are read.
        there = {p.parent.name for p in self.folder.glob(f"rankers/*/{FUSE_FILE}")}
        chosen = [name for name in _named(recipe, "rankers") if name in there]
        read = [self.read(f"rankers/{name}/{FUSE_FILE}", partial(_fusion, name)) for name in chosen]
        return [sentence for sentence in read if sentence]

    def _stage(self, part: str, name: str, kind: str) -> Stage | None:
        if not (self.folder / part).is_dir():
            self.missing.append(f"{part}/ is missing: the recipe asks for this stage, it was not begun")
            return None
        state = self.read(f"{part}/stage.json", _read_object) or {}
        if state and not state.get("finished"):
            self.missing.append(f"{part}/ is not finished")
        return Stage(name, kind, state, self.read(f"{part}/log.json", _read_log) or [])


def _any_part(folder: Path) -> bool:
    names = [e.rstrip("/") for e in EXPECTED if "NAME" not in e]
    return any((folder / n).exists() for n in names) or any(p.is_dir() for p in folder.glob("align/*"))


def _parse_recipe(text: str, missing: list[str]) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text) if text else {}
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        missing.append(f"recipe.yaml cannot be read: {first_words(e)}")
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _read_log(path: Path) -> list[dict[str, Any]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, list):
        raise DataError(f"expected a JSON list, got {type(value).__name__}")
    return [e for e in value if isinstance(e, dict)]


def _read_metrics(path: Path) -> tuple[str, Evaluation, Evaluation | None, Evaluation | None, Any]:
    value = _read_object(path)
    full_catalogue, generation = (
        Evaluation.from_json(value[part]) if value.get(part) else None for part in ("full_catalogue", "generation")
    )
    split, evaluation = str(value.get("split", "test")), Evaluation.from_json(value["evaluation"])
    return split, evaluation, full_catalogue, generation, value.get("made_of")


def _read_preferences(path: Path) -> Preferences:
    return Preferences.from_json(_read_object(path))


def _fusion(name: str, path: Path) -> str:
    return fusion_sentence(name, _read_object(path))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
