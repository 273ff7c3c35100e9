"""`prefrec lab published-json`: convert prepared data to the JSON files of the S-DPO scripts, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefrec.cli import _options as o
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec_lab.datasets.published import write_published_splits, write_sequences


def published_json(
    data: o.DataFolder,
    out: Annotated[Path, Parameter(help="Folder to write. Created if missing.")],
    /,
    *,
    sequences: Annotated[
        bool,
        Parameter(help="Read such JSON from DATA and write its sessions, for lastfm-published."),
    ] = False,
    names: Annotated[
        Path | None,
        Parameter(help="With --sequences: the published id2name.txt, whose ids determine the candidate sets."),
    ] = None,
) -> None:
    """Write train.json, validation.json and test.json, with titles instead of ids.

    The source `published-json` of `prefrec prepare` reads them. With --sequences: the way back, from such files to
    sequences.tsv and id2name.txt, which the source `lastfm-published` reads.

    Example: prefrec lab published-json data/ml data/ml-json
    """
    if sequences:
        write_sequences(data, out, names)
    elif names is not None:
        raise ConfigError("--names: only with --sequences; remove it")
    else:
        write_published_splits(read_prepared(data), out)
