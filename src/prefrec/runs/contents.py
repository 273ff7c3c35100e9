"""Read a run's folder: all parts that can be read, and a sentence for each part that cannot."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefrec.data import PreparedData, prepared_digest, read_prepared
from prefrec.errors import DataError, without_secrets
from prefrec.files import check_spelling, read_whole
from prefrec.rankers.blend import BLEND_FILE, Weights, weights_sentence
from prefrec.runs.results import METRICS, PREDICTIONS, Results, json_value, read_part, read_results
from prefrec.runs.served import REFIT, only_served, read_served
from prefrec.runs.stage import STAGE_FILE, check_whole, damaged, is_previous, read_state, stage_key
from prefrec.strict_yaml import read_yaml

EXPECTED = ("recipe.yaml", "environment.json", "data/", "sft/", "align/", METRICS, PREDICTIONS)
"""The parts of a run's folder."""

_STAGE_FOLDERS = ("sft", "align/*", "rankers/*")

WITHOUT_BASE = {"als", "blend", "morec", "retrieve-then-rank", "sequential", "title-tower"}
"""Kinds of rankers that do not use the base model of the recipe."""


@dataclass(frozen=True)
class StageLog:
    """The state and the log of a training stage.

    Attributes:
        name: `sft`, or the name of an alignment. Its ranker in tables has the same name.
        kind: `sft` or `align`.
        state: content of `stage.json` (`finished`, `seconds`, `config`).
        log: the Trainer's `log_history`; empty until training has ended.
    """

    name: str
    kind: str
    state: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def setting(self, name: str) -> Any:
        """Return a setting from the stage's configuration or one of its sections; None if it is missing."""
        config = self.state.get("config") or {}
        sections = [config, *(v for v in config.values() if isinstance(v, dict))]
        return next((s[name] for s in sections if name in s), None)

    def points(self, key: str) -> list[tuple[float, float]]:
        """Return (step, value) of every log entry with `key`."""
        numbers = [(e.get("step"), e.get(key)) for e in self.log]
        return [(float(s), float(v)) for s, v in numbers if isinstance(s, int | float) and isinstance(v, int | float)]


@dataclass(frozen=True, eq=False)
class RunContents:
    """The parts of a run that can be read.

    Attributes:
        recipe_text: the recipe, without secrets in addresses.
        stages: SFT first, then alignments in the recipe's order.
        missing: a sentence for each part that is missing, unfinished or damaged.
        machines: folder of a stage → machine and versions that finished it, if recorded.
        fusions: a sentence for each blend of the recipe, with its weights.
        outdated: changes since the rankers were evaluated. The results then count as missing.
        results: what the evaluation has measured.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    data: PreparedData | None
    stages: list[StageLog]
    missing: list[str]
    machines: dict[str, dict[str, Any]]
    fusions: list[str]
    outdated: str
    results: Results

    @property
    def language_models(self) -> list[str]:
        """Names of the run's language models: the base model, SFT and alignments."""
        return ["zero-shot", *(["sft"] if self.recipe.get("sft") else []), *_named(self.recipe, "align")]

    def parts_of(self, ranker: str) -> list[str]:
        """Return the names of a blend's parts; [] if the recipe has no such blend."""
        entries = self.recipe.get("rankers")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name") == ranker and isinstance(entry.get("parts"), list):
                return [str(part) for part in entry["parts"]]
        return []

    @property
    def model(self) -> str:
        """Name of the base model; "" if the recipe has none, or no ranker that uses one."""
        evaluate, rankers = self.recipe.get("evaluate"), self.recipe.get("rankers")
        before = not isinstance(evaluate, dict) or evaluate.get("zero_shot", True)
        kinds = {r.get("kind") for r in rankers if isinstance(r, dict)} if isinstance(rankers, list) else set()
        if not (before or self.recipe.get("sft") or self.recipe.get("align") or kinds - WITHOUT_BASE):
            return ""
        section = self.recipe.get("model", "")
        return str(section.get("name", "")) if isinstance(section, dict) else str(section)


def read_run(folder: Path, data: PreparedData | None = None, results: Results | None = None) -> RunContents:
    """Return the contents of a run's folder; raise DataError if it does not exist or is not a run's.

    Args:
        folder: of the run.
        data, results: its prepared data and results if they are in memory. Default: read them.
    """
    folder = Path(folder)
    check_spelling(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; `prefrec run RECIPE.yaml` makes one")
    if not any((folder / name).exists() for name in EXPECTED):
        raise DataError(
            f"{folder} is not the folder of a run: expected at least one of {', '.join(EXPECTED)}; "
            "`prefrec run RECIPE.yaml` writes them"
        )
    missing: list[str] = []
    text, recipe = read_part(folder, "recipe.yaml", missing, _read_recipe) or ("", {})
    environment = read_part(folder, "environment.json", missing, json_value) or {}
    data = read_part(folder, "data", missing, _read_data) if data is None else data
    stages = _stages(folder, recipe, missing)
    outdated = ""
    if results is None:
        results = read_results(folder, missing)
        outdated = _outdated(folder, recipe, results)
    if outdated:
        results = Results()
        missing.append(f"metrics.json and predictions.parquet are out of date: {outdated}")
    machines = {
        part: state["environment"]
        for part, state in _states(folder, recipe).items()
        if state.get("finished") and isinstance(state.get("environment"), dict)
    }
    fusions = _fusions(folder, recipe, missing)
    return RunContents(folder, recipe, text, environment, data, stages, missing, machines, fusions, outdated, results)


def is_evaluated(folder: Path) -> bool:
    """Return True if the evaluation of a run has finished, and nothing that it depends on has changed since."""
    missing: list[str] = []
    _, recipe = read_part(folder, "recipe.yaml", missing, _read_recipe) or ("", {})
    results = read_results(folder, missing)
    return results.evaluation is not None and not _outdated(folder, recipe, results)


def _outdated(folder: Path, recipe: dict[str, Any], results: Results) -> str:
    """Return what changed since the evaluation; "" if nothing did, or the results do not say what they depend on."""
    if results.made_of is None:
        return ""
    now = result_inputs(folder, recipe)
    changed = [part for part, key in now.items() if results.made_of.get(part, key) != key]
    again = "changed since the evaluation; `prefrec run` with this recipe evaluates again"
    return f"{', '.join(changed)} {again}" if changed else ""


def result_inputs(folder: Path, recipe: dict[str, Any], data_key: str | None = None) -> dict[str, str]:
    """Return the hashes of the inputs of a run's metrics: recipe, prepared data and stages, if they exist.

    Args:
        folder: of the run.
        recipe: raw recipe.
        data_key: key of the prepared data. Default: compute it (`prepared_digest`).
    """
    hashes = {part: str(state["key"]) for part, state in _states(folder, recipe).items() if "key" in state}
    hashes.pop("data", None)  # changes if the same data come from other files
    with suppress(OSError, ValueError, AttributeError):
        hashes["data"] = data_key or prepared_digest(folder / "data")
    # These settings, the recipe's name and its rules of answers do not affect metrics.
    idle = {"data": "users", "evaluate": "batch_size"}
    settings = {
        name: {k: v for k, v in section.items() if k != idle.get(name)} if isinstance(section, dict) else section
        for name, section in recipe.items()
        if name not in ("name", "answers")
    }
    with suppress(TypeError, ValueError, RecursionError):
        hashes |= {"recipe": stage_key(recipe=settings)} if settings else {}
    return hashes


def _states(folder: Path, recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return folder → content of `stage.json`, of each stage of the recipe."""
    wanted = {"sft"} if recipe.get("sft") else set[str]()
    for section in ("align", "rankers"):
        wanted |= {f"{section}/{name}" for name in _named(recipe, section)}
    wanted |= {f"{REFIT}/{part}" for part in wanted if _is_refit(folder, recipe, part.rpartition("/")[2])}
    wanted.add("data")
    patterns = ["data", *(f"{start}{pattern}" for start in ("", f"{REFIT}/") for pattern in _STAGE_FOLDERS)]
    states: dict[str, dict[str, Any]] = {}
    # The recipe is untrusted, so its names are compared with folders and never opened as paths.
    for path in (p for pattern in patterns for p in sorted(folder.glob(pattern))):
        part = str(path.relative_to(folder))
        with suppress(OSError):
            if part in wanted and (state := read_state(path)):
                states[part] = state
    return states


def _is_refit(folder: Path, recipe: dict[str, Any], name: str) -> bool:
    """Return True if a ranker of the raw recipe also learns validation interactions."""
    if only_served(recipe):
        return name in (read_served(folder) or ())
    return bool(recipe.get(REFIT))


def _named(recipe: dict[str, Any], section: str) -> list[str]:
    """Return the names of a section's entries; [] if the section is malformed."""
    entries = recipe.get(section)
    entries = entries if isinstance(entries, list) else []
    return [str(e["name"]) for e in entries if isinstance(e, dict) and "name" in e]


def _stages(folder: Path, recipe: dict[str, Any], missing: list[str]) -> list[StageLog]:
    """Return the training stages, and add those of the recipe that the folder lacks to `missing`."""
    there = sorted(p.name for p in folder.glob("align/*") if p.is_dir() and not is_previous(p.name))
    names = list(dict.fromkeys([*_named(recipe, "align"), *there]))
    wanted = [("sft", "sft", "sft")] if recipe.get("sft") or (folder / "sft").is_dir() else []
    # The recipe is untrusted: a name with a slash could lead out of the folder.
    names = [name for name in names if not name.startswith(".") and "/" not in name]
    wanted += [(f"align/{name}", name, "align") for name in names]
    if recipe.get(REFIT):
        # Without new interactions there is nothing to refit.
        again = [
            (f"{REFIT}/{part}", f"{name} {REFIT}", kind)
            for part, name, kind in wanted
            if _is_refit(folder, recipe, name)
        ]
        wanted += [stage for stage in again if (folder / stage[0]).is_dir()]
    stages = []
    for part, name, kind in wanted:
        if not (folder / part).is_dir():
            missing.append(f"{part}/ is missing: this stage of the recipe has not begun")
            continue
        state = read_part(folder, f"{part}/{STAGE_FILE}", missing, json_value) or {}
        if state.get("finished") is False:
            missing.append(f"{part}/ is not finished")
        elif broken := damaged(folder / part):
            missing.append(f"{part}/ is damaged ({', '.join(broken)}); `prefrec run` makes it again")
        log = read_part(folder, f"{part}/log.json", missing, partial(json_value, kind=list)) or []
        stages.append(StageLog(name, kind, state, [e for e in log if isinstance(e, dict)]))
    return stages


def _fusions(folder: Path, recipe: dict[str, Any], missing: list[str]) -> list[str]:
    """Return a sentence for each blend among the recipe's `rankers` that has learnt its weights."""
    there = {p.parent.name for p in folder.glob(f"rankers/*/{BLEND_FILE}")}

    def read(file: Path) -> str:
        check_whole(file.parent)
        return weights_sentence(file.parent.name, Weights.from_json(json_value(file)))

    def sentence(name: str) -> str | None:
        return read_part(folder, f"rankers/{name}/{BLEND_FILE}", missing, read)

    return [text for name in _named(recipe, "rankers") if name in there and (text := sentence(name))]


def _read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    text = read_whole(path)
    recipe = read_yaml(text)
    return without_secrets(text), recipe if isinstance(recipe, dict) else {}


def _read_data(path: Path) -> PreparedData:
    check_whole(path)
    return read_prepared(path)
