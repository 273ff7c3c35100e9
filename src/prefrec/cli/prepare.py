"""`prefrec prepare`: make ranking examples from a log and a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefrec.cli import _options as o
from prefrec.data import write_prepared
from prefrec.intake import PrepareConfig
from prefrec.intake import prepare as prepare_data
from prefrec.runs.lock import stage_lock


def prepare(
    out: Annotated[Path, Parameter(help="Folder to write. Created if missing.")],
    /,
    *,
    as_json: o.AsJson = False,
    section: o.Own[PrepareConfig] = o.untouched(PrepareConfig),
) -> None:
    """Make ranking examples (history, candidates, target) from a log and item titles.

    Histories contain only interactions before the target. Negatives are items that the user has not seen, sampled
    with a seed that depends on user and position, never on the target. OUT gets Parquet files, and protocol.json with
    the protocol and counts.

    Example: prefrec prepare data/ml (MovieLens-100K, no download)

    Example: prefrec prepare data/shop --source files --interactions log.csv --items items.csv --columns.user customer
    --columns.title name
    """
    with stage_lock(out):
        data = prepare_data(section, as_codes=True)
        write_prepared(data, out)
    if as_json:
        o.print_json(data.protocol)
    else:
        print("\n• ".join([f"{data.protocol['source']} → {out}", *data.summary]))
