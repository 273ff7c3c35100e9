"""Train a recommender on a log and a catalogue, files or frames: `prefrec.fit`."""

from __future__ import annotations

import copy
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import polars as pl
from rich.markup import escape

from prefrec import processes
from prefrec.console import say, warn
from prefrec.errors import ConfigError, DataError, PrefrecError, did_you_mean, first_words
from prefrec.files import write_whole
from prefrec.intake.config import ColumnNames, PrepareConfig
from prefrec.intake.readers import ADDRESS
from prefrec.pipeline.run import run_recipe
from prefrec.presets import preset
from prefrec.proposal.guess import Guess, guess
from prefrec.proposal.suggest import fitting_preset, longest_history
from prefrec.rankers.config import fit_for_a_name
from prefrec.recipe import Recipe, checked_recipe, load_recipe, set_value, with_preset, without_lost_parts
from prefrec.recommender import Recommender
from prefrec.strict_yaml import read_yaml

_TABLES = ("interactions", "items")
_SOURCE = ("source", "path", "more_interactions", "users", "row_files")
"""Fields of a recipe's data that belong to its log and catalogue, and so not to others."""
_OURS = {"user_id": "user", "item_id": "item"}
"""Names of our columns → fields of `ColumnNames`; the other fields have the names of their columns."""
_NOT_A_FRAME = (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError)
"""Errors of polars on values that it cannot convert."""


def fit(
    interactions: Any,
    items: Any,
    recipe: str | Path | Mapping[str, Any] = "baselines",
    *,
    columns: Mapping[str, str | None] | None = None,
    align: Literal["recipe"] | Sequence[Mapping[str, Any]] | None = "recipe",
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Recommender:
    """Train on a log and a catalogue as `prefrec run` does, and return the best ranker on validation examples.

    Columns, split and candidates are guessed as `prefrec init` guesses them, where the recipe does not name them.

    Args:
        interactions: log with a user, an item and a time: a frame of polars or pandas, or of anything that offers
            itself as Arrow (a table of pyarrow, a relation of DuckDB), columns by name, or the path of a file, folder
            or pattern (CSV, TSV, Parquet, JSON lines, `.gz`).
        items: catalogue with an item, its title and any other columns, in any of the same forms.
        recipe: name of a preset, path of a YAML file, or a dict of a recipe's values (`preset` names the base that
            the other values change). The default `baselines` has no language model; `fast` adds one (extra
            `lm`). Log and catalogue replace the recipe's data source, with all of its files.
        columns: our column → yours, such as `{"user_id": "customer", "title": "name"}`. Default: guessed.
        align: alignments in place of the recipe's; None means no alignment. Default: those of the recipe.
        set: changes to the recipe by dotted name, such as `{"sft.epochs": 1}`, as with `--set`.
        out: folder of the run; the same call resumes there after an interruption. Default: a temporary folder,
            deleted together with the recommender.

    Returns:
        The recommender. Its `results` show what the evaluation has measured.

    Raises:
        DataError: the log or the catalogue cannot be used.
        ConfigError: the recipe is invalid.
    """
    raw = _values(recipe)
    raw.setdefault("name", (out and fit_for_a_name(Path(out).resolve().name)) or "fit")
    if align != "recipe":
        raw["align"] = _alignments(align)
    own = _section(raw, "data")
    raw["data"] = {name: value for name, value in own.items() if name not in _SOURCE}
    raw["data"]["columns"] = _section(own, "columns", "data.columns") | _columns(columns or {})
    with _in_python({}):
        _recipe(raw, set or {}, dict.fromkeys(_TABLES, "-") | {"source": "files"})  # errors of the recipe come first
    for name, value in (set or {}).items():
        if name.startswith("data."):  # the guess must read the files with these settings too
            set_value(raw, name, value)
    given = {"interactions": _table("interactions", interactions), "items": _table("items", items)}
    if out:
        return _trained(given, raw, set or {}, Path(out).resolve())
    folder = Path(str(processes.from_first(mkdtemp(prefix="prefrec-") if processes.is_first() else None)))
    try:
        recommender = _trained(given, raw, set or {}, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(recommender, shutil.rmtree, folder, ignore_errors=True)
    return recommender


def _trained(
    given: Mapping[str, pl.DataFrame | Path], raw: dict[str, Any], changes: Mapping[str, Any], folder: Path
) -> Recommender:
    files = {n: t if isinstance(t, Path) else folder / "input" / f"{n}.parquet" for n, t in given.items()}
    for name, table in given.items() if processes.is_first() else ():
        if isinstance(table, pl.DataFrame):
            files[name].parent.mkdir(parents=True, exist_ok=True)
            write_whole(files[name], table.write_parquet)
    processes.wait()
    frames = {file: name for name, file in files.items() if file is not given[name]}
    with _in_python(frames):
        known = ColumnNames.model_validate(raw["data"]["columns"])
        encoding = raw["data"].get("encoding", "utf-8")
        longest = longest_history(raw.get("preset", ""))
        is_file = files["interactions"] not in frames
        found = guess(
            files["interactions"], files["items"], known, encoding, longest, may_hold_lists=is_file
        )  # ready-made examples are several files
        for field, value, why in found.settings:
            if why.startswith("check"):
                warn(escape(_python_words(f"{field} is {value!r} ({why})", frames)))
        run = run_recipe(_recipe(raw, changes, found.source, found), folder)
    return Recommender.from_run(run)


def _recipe(
    raw: Mapping[str, Any], changes: Mapping[str, Any], source: Mapping[str, Any], found: Guess | None = None
) -> Recipe:
    """Return the recipe of raw values on a data source, with `changes` by dotted name, and guesses for the rest."""
    data: dict[str, Any] = {"columns": {}}
    for field, value, _ in found.settings if found else ():
        inner = data["columns"] if field.startswith("columns.") else data
        inner[field.removeprefix("columns.")] = value
    own = {name: value for name, value in raw["data"].items() if name not in _TABLES}
    data |= own | {"columns": data["columns"] | own["columns"]} | {name: str(v) for name, v in source.items()}
    values: dict[str, Any] = {}
    if "preset" in raw:
        values = read_yaml(fitting_preset(raw["preset"], found)) if found else preset(raw["preset"])
    whole = with_preset(copy.deepcopy(dict(raw)), values) | {"data": data}
    for name, value in changes.items():
        set_value(whole, name, value)
    return checked_recipe(without_lost_parts(whole, values, say if found else lambda message: None))


def _values(recipe: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values, not yet completed by its preset."""
    if isinstance(recipe, Mapping):
        return copy.deepcopy(dict(recipe))
    if isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        return {"preset": recipe}
    loaded = load_recipe(Path(recipe))
    return loaded.model_dump(mode="json") | {"data": loaded.data.model_dump(mode="json", exclude_unset=True)}


def _section(values: Mapping[str, Any], name: str, called: str = "") -> dict[str, Any]:
    """Return a section of a recipe's values, empty if it is absent; raise ConfigError if it is not a dict."""
    section = values.get(name, {})
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{called or name}: expected a dict of settings, got {section!r}; correct it or leave it out"
        )
    return dict(section)


def _alignments(given: Any) -> list[dict[str, Any]]:
    """Return the alignments that `fit` was given; raise ConfigError if they are not a list of dicts."""
    sections = [] if given is None else given
    is_list = isinstance(sections, Sequence)
    if not is_list or not all(isinstance(section, Mapping) for section in sections):
        raise ConfigError(
            f'align: expected a list of dicts of settings, such as [{{"num_negatives": 3}}], got {given!r}; correct '
            "it, or leave it out for the alignments of the recipe"
        )
    return [dict(section) for section in sections]


def _columns(given: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return field of `ColumnNames` → column; raise ConfigError for a name that is not one of ours."""
    known = [*_OURS, *(field for field in ColumnNames.model_fields if field not in _OURS.values())]
    fields = {_OURS.get(name, name): column for name, column in given.items()}
    if unknown := [name for name in given if _OURS.get(name, name) not in ColumnNames.model_fields]:
        near = did_you_mean(unknown[0], known)
        raise ConfigError(f"columns: {unknown[0]!r} is not one of our columns {', '.join(known)}{near}")
    for ours, field in _OURS.items():
        if ours in given and field in given:
            raise ConfigError(f"columns: {ours!r} and {field!r} are two names of one column; keep one of them")
    return fields


def _table(name: str, given: Any) -> pl.DataFrame | Path:
    """Return a frame, or the path of files."""
    if isinstance(given, str | PathLike):
        path = Path(given)
        return path if ADDRESS.search(path.as_posix()) else path.resolve()
    if isinstance(given, pl.LazyFrame):
        given = given.collect()
    try:
        table = given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
    except _NOT_A_FRAME as e:
        _check_columns(name, given)
        raise DataError(
            f"{name}: expected a frame of polars, pandas or Arrow, columns by name, or a path, "
            f"got {type(given).__name__}: {first_words(e)}"
        ) from None
    _check_types(name, table)
    return table


def _check_types(name: str, table: pl.DataFrame) -> None:
    """Raise DataError about the first column with a type that cannot be stored or read, if there is one."""
    for column in table.columns:
        if isinstance(kind := table.schema[column], pl.BaseExtension):  # polars cannot convert its values
            raise DataError(
                f"{name}, column {column!r}: values of the type {kind.ext_name()} cannot be read; convert them, "
                "for example periods with .dt.to_timestamp(), others with .astype(str)"
            )
        try:
            table.select(column).clear().write_parquet(BytesIO())
        except pl.exceptions.PolarsError:
            raise DataError(
                f"{name}, column {column!r}: values of the type {table.schema[column]} cannot be stored; convert "
                "them to texts or numbers, for example with str, or drop the column"
            ) from None


def _check_columns(name: str, given: Any) -> None:
    """Raise DataError about the first column of a pandas frame that cannot be converted, if there is one."""
    if not (hasattr(given, "columns") and hasattr(given, "items")):
        return  # other types have other remedies
    for column, values in given.items():
        try:
            pl.Series("", values)
        except _NOT_A_FRAME as e:
            kinds = ", ".join(sorted({type(value).__name__ for value in values}))
            raise DataError(
                f"{name}, column {column!r}: values of the types {kinds} do not fit into one column "
                f'({first_words(e)}); convert them, for example with .astype("string")'
            ) from None


@contextmanager
def _in_python(frames: Mapping[Path, str]) -> Iterator[None]:
    """Say errors in the words of Python, with the argument's name in place of the file of a frame."""
    try:
        yield
    except PrefrecError as e:
        if e.args and isinstance(e.args[0], str):
            e.args = (_python_words(e.args[0], frames), *e.args[1:])
        raise


_OPTION = re.compile(
    r"--([a-z][a-z-]*(?:\.[a-z-]+)?)(?: (none|drop|[\w-]+(?= \()))?(?: \(`[^`]*` in a recipe\))?(?!\w)"
)
"""An option in a message, with a value of one word and the field of a recipe, if the message names them."""


def _python_words(text: str, frames: Mapping[Path, str]) -> str:
    """Return a message with arguments of `fit` in place of options and of the files of frames."""
    for file, name in frames.items():
        text = text.replace(str(file), name).replace(file.name, name)
    ours = {field: column for column, field in _OURS.items()}

    def argument(option: re.Match[str]) -> str:
        section, _, inner = option[1].replace("-", "_").rpartition(".")
        word = option[2] or "…"
        value = {"none": "None", "…": "…"}.get(word, word if word.isdecimal() else f'"{word}"')
        if section == "columns":
            return f'columns={{"{ours.get(inner, inner)}": {value}}}'
        field = f"{section}.{inner}" if section else inner
        is_data = field.partition(".")[0] in PrepareConfig.model_fields
        return f'set={{"data.{field}": {value}}}' if is_data else option[0]

    def field(name: re.Match[str]) -> str:
        return f'columns["{ours.get(name[1], name[1])}"]'

    return re.sub(r"(?:\bdata\.)?\bcolumns\.(\w+)", field, _OPTION.sub(argument, text))
