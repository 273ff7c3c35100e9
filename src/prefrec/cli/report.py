"""`prefrec report`: a run's folder as one HTML page."""

from __future__ import annotations

import typer

from prefrec.cli import _options as o
from prefrec.report import write_report
from prefrec.runs.lock import reader_lock


def report(run: o.RunFolder) -> None:
    """Write RUN/report.html, and print its path.

    The page needs no other file and no network: tables with intervals, curves of each stage, examples before and
    after. The page of a run that stopped midway says what is missing.
    """
    with reader_lock(run):
        typer.echo(write_report(run))
