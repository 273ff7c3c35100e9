"""`prefrec report`: write a run's report as one HTML page."""

from __future__ import annotations

from prefrec.cli import _options as o
from prefrec.report import write_report
from prefrec.runs.contents import read_run
from prefrec.runs.lock import reader_lock


def report(run: o.RunFolder, /) -> None:
    """Write RUN/report.html and print its path.

    The page has tables with intervals, training curves, and examples before and after alignment. It is one
    self-contained file. If the run is unfinished, it says what is missing.

    Example: prefrec report runs/demo
    """
    with reader_lock(run):
        print(write_report(read_run(run)))
