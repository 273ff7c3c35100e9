"""`prefrec prepare`: a log and a catalogue in, a folder of ranking examples out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import PrepareConfig, PreparedData, write_prepared
from prefrec.data import prepare as prepare_data


@o.from_sections
def prepare(
    out: Annotated[Path, typer.Argument(help="Folder to write to; made if it is missing.")],
    section: PrepareConfig,
    as_json: o.AsJson = False,
) -> None:
    """Make ranking examples (history, candidates, target) from a log and item titles.

    Histories hold only what came before the target. Negatives are items that the user never touched, drawn by a seed
    that depends on user and position, never on the target. OUT gets Parquet files and protocol.json, which says how
    they were made.

    Example: prefrec prepare data/ml (MovieLens-100K, no download)

    Example: prefrec prepare data/shop --source files --interactions log.csv --items items.csv --columns.user customer
    --columns.title name
    """
    data = prepare_data(section)
    write_prepared(data, out)
    if as_json:
        o.print_json(data.protocol)
    else:
        _show(data, out)


def _show(data: PreparedData, out: Path) -> None:
    counts, protocol = data.protocol["counts"], data.protocol
    candidates = protocol["candidates"]
    parts = (f"{rows:,} {part} rows of {counts['row_users'][part]:,} users" for part, rows in counts["rows"].items())
    lines = [
        ", ".join(parts),
        f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions, "
        f"{counts['train_interactions']:,} of them to learn from",
        f"split {protocol['split']}, {candidates['size']} candidates ({candidates['kind']}), seed {protocol['seed']}",
    ]
    short, repeats = protocol["split_facts"].get("users_too_short"), counts.get("repeats_dropped")
    lines += [f"{short:,} users left out: too short a history"] if short else []
    lines += [f"{repeats:,} repeats left out"] if repeats else []
    typer.echo("\n• ".join([f"{protocol['source']} → {out}", *lines, *protocol["notes"]]))
