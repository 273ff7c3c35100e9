"""`prefrec published-json`: prepared data as the JSON files of the S-DPO scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli import _options as o
from prefrec.data import read_prepared
from prefrec_lab.datasets.published import write_published_splits


def published_json(
    data: o.DataFolder, out: Annotated[Path, typer.Argument(help="Folder to write to; made if it is missing.")]
) -> None:
    """Write train.json, validation.json and test.json, with titles in place of ids.

    The source `published-json` of `prefrec prepare` reads them.

    Example: prefrec published-json data/ml data/ml-json
    """
    write_published_splits(read_prepared(data), out)
