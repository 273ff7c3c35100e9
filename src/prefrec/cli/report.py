"""`prefrec report`: a run's folder as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefrec.report import write_report


def report(run: Annotated[Path, typer.Argument(help="Folder that `prefrec run` wrote, as runs/demo.")]) -> None:
    """Write RUN/report.html, and print its path.

    The page needs no other file and no network: tables with intervals, curves
    of each stage, examples before and after. A run that stopped midway gets
    one too, which says what is missing.
    """
    typer.echo(write_report(run))
