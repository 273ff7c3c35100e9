"""Draw docs/images/catalogue.svg from the tables of section 44: `python scripts/catalogue_plot.py`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from prefrec.report.svg import PALETTE

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "lab" / "results" / "44-answers-over-large-catalogues.json"
PLOT = ROOT / "docs" / "images" / "catalogue.svg"


def figure() -> Figure:
    """Return two panels against the number of items: CPU time (a line at p50, a mark at p99) and memory."""
    drawn = Figure(figsize=(8.5, 3.4), layout="constrained")
    time, memory = drawn.subplots(1, 2)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["tables"][0]["rows"]
    for colour, way in zip(PALETTE, dict.fromkeys(row[0] for row in rows), strict=False):
        columns = zip(*(row[1:] for row in rows if row[0] == way), strict=True)
        items, p50, p99, gigabytes = ([float(cell.replace(",", "")) for cell in column] for column in columns)
        time.plot(items, p50, color=colour, marker="o", markersize=4, label=way)
        time.plot(items, p99, color=colour, marker="_", linestyle="none", markersize=9)
        memory.plot(items, gigabytes, color=colour, marker="o", markersize=4)
    for axes, label in ((time, "CPU ms of an answer"), (memory, "GB, resident")):
        axes.set(xscale="log", xlabel="items", ylabel=label)
        axes.grid(alpha=0.2)
    time.set_yscale("log")
    time.legend(fontsize=8, frameon=False)
    return drawn


if __name__ == "__main__":
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefrec"}):
        figure().savefig(PLOT, metadata={"Date": None})
