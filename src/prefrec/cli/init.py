"""`prefrec init`: write a recipe for your own log and catalogue."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.console import warn
from prefrec.data import ColumnNames
from prefrec.data.guess import Guess, guess
from prefrec.errors import ConfigError
from prefrec.files import check_destination, write_text
from prefrec.presets import PresetName, preset_text

SHORT = 15
"""Largest history length for which a step takes four times the preset's examples."""


@o.from_sections
def init(
    interactions: Annotated[Path, typer.Option(help="Log: CSV, TSV, Parquet, JSON lines or RecBole .inter.")],
    items: Annotated[Path, typer.Option(help="Catalogue with titles, in any of the same formats.")],
    columns: ColumnNames,
    preset: Annotated[PresetName, typer.Option(help="fast: minutes; paper: a 7B model.")] = "fast",
    encoding: Annotated[str, typer.Option(help="Encoding of text files that are not UTF-8.")] = "utf-8",
    out: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
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
    # In the paper's prompts, the history shares the space with the candidates.
    found = guess(interactions, items, columns, encoding, 10 if preset == "paper" else 30)
    name = re.sub(r"^[\W_]+|[^\w.-]", "", (out or interactions).name.split(".")[0], flags=re.ASCII) or "own"
    lines = [_line("name", name), "", "data:"]
    for field, value in found.source.items():
        near = os.path.relpath(value, out.parent if out else ".") if isinstance(value, Path) else value
        lines.append(_line(f"  {field}", Path(near).as_posix()))
    lines.append(_line("  encoding", encoding))
    lines += ["  columns:"] if any(field.startswith("columns.") for field, *_ in found.settings) else []
    for field, value, why in found.settings:
        lines.append(_line(f"  {field}".replace("columns.", "  "), value, why))
        if why.startswith("check"):
            warn(escape(f"{field}: {value}: {why}"))
    text = "\n".join([*lines, "", _fitting(preset_text(preset), found)])
    if out:
        write_text(out, text)
    typer.echo(f"Recipe: {out}" if out else text, nl=bool(out))


def _fitting(text: str, found: Guess) -> str:
    """Return a preset adapted to the data: no more negatives than there are items, and a suggested `item_text`."""

    def fewer(given: re.Match[str]) -> str:
        # With negatives from candidate sets, the others in the set are the limit.
        room = found.values["candidates"]["size"] - 1 if "negatives_from: list" in text else found.room
        return given[0] if int(given[1]) <= room else f"num_negatives: {max(room, 1)} # no more items are left"

    text = re.sub(r"num_negatives: (\d+)( *#.*)?", fewer, text)
    # Eight short sequences leave most of a processor idle.
    if found.values["history_length"] <= SHORT and "answers: items" in text:
        larger = "global_batch_size: 32         # larger, because histories are short\n  per_device_batch_size: 32\n"
        text = text.replace("per_device_batch_size: 8\n", larger)
    if found.item_text:
        line = _line("item_text", found.item_text, "remove the first # to show items like this to the model")
        text = text.replace("\nmodel:\n", f"\nmodel:\n  # {line}\n")
    return text


def _line(key: str, value: Any, why: str = "") -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    line = f"{key}: {text.removesuffix('...' + chr(10)).strip()}"
    return f"{line:<31} # {' '.join(why.split())}" if why else line
