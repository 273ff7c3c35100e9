"""Train a recommender on two frames: `prefrec.fit`."""

from __future__ import annotations

import copy
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import polars as pl

from prefrec import processes
from prefrec.data.readers import first_words
from prefrec.errors import DataError
from prefrec.files import write_whole
from prefrec.pipeline.recipe import checked_recipe, load_recipe, set_value, with_preset
from prefrec.pipeline.run import run_recipe
from prefrec.recommender import Recommender


def fit(
    interactions: Any,
    items: Any,
    recipe: str | Path | Mapping[str, Any] = "fast",
    *,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Recommender:
    """Train on two frames as `prefrec run` does, and return the ranker that is best on validation examples.

    Args:
        interactions: polars or pandas frame with the columns `user_id`, `item_id`, `timestamp` and optionally
            `rating`, or those named in the recipe's `data.columns`.
        items: frame with the columns `item_id`, `title` and any others.
        recipe: name of a preset, path of a YAML file, or a dict of a recipe's values (`preset` names the base that
            the other values change). The frames replace its data source.
        set: changes to the recipe by dotted name, such as `{"sft.epochs": 1}`, as with `--set`.
        out: folder of the run; the same call resumes there after an interruption. Default: a temporary folder,
            deleted together with the recommender.

    Returns:
        The recommender.

    Raises:
        DataError: a frame cannot be used.
        ConfigError: the recipe is invalid.
    """
    raw = _values(recipe)
    for name, value in (set or {}).items():
        set_value(raw, name, value)
    raw.setdefault("name", Path(out).name if out else "fit")
    frames = {"interactions": _frame("interactions", interactions), "items": _frame("items", items)}
    if out:
        return _trained(frames, raw, Path(out).resolve())
    folder = Path(str(processes.from_first(mkdtemp(prefix="prefrec-") if processes.is_first() else None)))
    try:
        recommender = _trained(frames, raw, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(recommender, shutil.rmtree, folder, ignore_errors=True)
    return recommender


def _trained(frames: Mapping[str, pl.DataFrame], raw: dict[str, Any], folder: Path) -> Recommender:
    files = {name: folder / "input" / f"{name}.parquet" for name in frames}
    raw["data"] = {**raw.get("data", {}), "source": "files", "path": None, **{n: str(f) for n, f in files.items()}}
    checked = checked_recipe(raw)
    for name, file in files.items() if processes.is_first() else ():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, frames[name].write_parquet)
    processes.wait()
    run_recipe(checked, folder)
    return Recommender.from_run(folder)


def _values(recipe: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values, completed by its preset."""
    if isinstance(recipe, Mapping):
        return with_preset(copy.deepcopy(dict(recipe)))
    if isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        return with_preset({"preset": recipe})
    return load_recipe(Path(recipe)).model_dump(mode="json")


def _frame(name: str, given: Any) -> pl.DataFrame:
    if isinstance(given, pl.LazyFrame):
        return given.collect()
    try:
        return given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as e:
        raise DataError(
            f"{name}: expected a polars or pandas frame, or columns by name, got {type(given).__name__}: "
            f"{first_words(e)}"
        ) from None
