"""`prefrec init`: write a recipe for your own log and catalogue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.console import say, warn
from prefrec.errors import ConfigError
from prefrec.files import check_destination, write_text
from prefrec.intake import ColumnNames
from prefrec.presets import PresetName
from prefrec.proposal.guess import guess
from prefrec.proposal.suggest import fitting_preset, longest_history, yaml_line
from prefrec.rankers.config import fit_for_a_name

LANGUAGE_MODEL = (
    "The preset has no language model. --preset fast adds one: it needs the extra lm (torch) and minutes to train. "
    "What it added to a blend was significant in none of seven splits of five data sets."
)


def init(
    *,
    interactions: Annotated[Path, Parameter(help="Log: CSV, TSV, Parquet, JSON lines or RecBole .inter.")],
    items: Annotated[Path, Parameter(help="Catalogue with titles, in any of the same formats.")],
    preset: Annotated[
        PresetName,
        Parameter(help="baselines: no language model, a minute; fast: one, minutes; titles: an hour; paper: 7B."),
    ] = "baselines",
    encoding: Annotated[str, Parameter(help="Encoding of text files that are not UTF-8.")] = "utf-8",
    out: Annotated[Path | None, Parameter(help="File to write. Default: standard output.")] = None,
    columns: ColumnNames = o.untouched(ColumnNames),
) -> None:
    """Write a recipe for a log and a catalogue.

    Columns are guessed by name and content, and split and history length from the log. A comment gives the reason for
    each guess. Options such as --columns.user override it.

    Example: prefrec init --interactions log.csv --items items.csv --out shop.yaml
    """
    if out:
        check_destination(out)
    if out and out.exists():
        raise ConfigError(f"{out} already exists: name another file with --out, or delete it")
    found = guess(interactions, items, columns, encoding, longest_history(preset))
    name = fit_for_a_name((out or interactions).name.split(".")[0]) or "own"
    lines = [yaml_line("name", name), "", "data:"]
    for field, value in found.source.items():
        near = os.path.relpath(value, out.parent if out else ".") if isinstance(value, Path) else value
        lines.append(yaml_line(f"  {field}", Path(near).as_posix()))
    lines.append(yaml_line("  encoding", encoding))
    if any(field.startswith("columns.") for field, *_ in found.settings):
        lines.append("  columns:")
    for field, value, why in found.settings:
        lines.append(yaml_line(f"  {field}".replace("columns.", "  "), value, why))
        if why.startswith("check"):
            warn(escape(f"{field}: {value}: {why}"))
    text = "\n".join([*lines, "", fitting_preset(preset, found)])
    if out:
        write_text(out, text)
    print(f"Recipe: {out}" if out else text, end="\n" if out else "")
    if preset == "baselines":
        say(escape(LANGUAGE_MODEL))
