"""Report of the results: tables on the terminal, a JSON file, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefrec.files import write_json, write_whole
from prefrec.report.svg import PALETTE
from prefrec_lab.bench.records import Figure as Spread
from prefrec_lab.bench.records import read_records
from prefrec_lab.bench.results import Line, Results
from prefrec_lab.bench.settings import PREFREC, STEP_METHODS, BenchSettings, base_method

JSON, PLOT = "bench.json", "bench"
CLOCKS = {"cpu": "CPU", "wall": "Wall"}
TITLES = {
    "growth": "Growth of a prefrec step with N",
    "ranking": "Ranking candidates",
    "catalogue": "Full ranking",
    "steps": "A training step, reference pass included",
}


def write_results(settings: BenchSettings, results: Results, out: Path) -> None:
    """Write `bench.json` (settings, results, every raw measurement), `bench.svg` and `bench.png` to a folder."""
    content = {
        "settings": settings.model_dump(mode="json"),
        "results": results.as_json(),
        "records": read_records(out),
    }
    write_json(out / JSON, content)
    figure = plot(results)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefrec"}):
        for kind in ("svg", "png"):
            write_whole(out / f"{PLOT}.{kind}", lambda p, k=kind: figure.savefig(p, format=k, dpi=150))  # type: ignore[misc]


def tables(results: Results, environments: Sequence[dict[str, Any]]) -> Group:
    """Return what `prefrec lab bench` prints."""
    parts: list[Any] = [_table(results, section) for section in TITLES if results.lines_of(section)]
    if results.growth:
        grown = ", ".join(f"N={n}: {ratio:.2f}×" for n, ratio in results.growth.items())
        parts.append(Text(f"Growth with N, {results.clock} time of a row: {grown}"))
    used = {base_method(line.summary.method) for line in results.lines_of("steps")}
    parts += [Text(f"{name}: {says}", style="dim") for name, says in STEP_METHODS.items() if name in used]
    parts += [Text(text, style="dim") for text in notes(results, environments)]
    return Group(*parts)


def notes(results: Results, environments: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences on how to read the tables."""
    out = [
        "Medians per row (smallest, largest, number of repetitions); rows of median prompt length. "
        f"×: {results.clock} time, and peak memory, ÷ prefrec's.",
        f"Floor: {results.clock} time of the matrix products of the fewest tokens ÷ the measured time, at the rate "
        "of large squares, and at that of the model's own matrices.",
        "TFLOP/s: FLOPs of the floor per second of wall time; MFU: their share of the device's peak, if known.",
    ]
    for work, rate in results.rates.items():
        section, _, n = work.partition(" ")
        size = f"N={n}" if section == "steps" else f"{int(n) + 1} titles"
        squares, layers = rate["square"] / 1e9, rate["layers"] / 1e9
        out.append(
            f"Matrix products at {size}: {squares:,.0f} GFLOP/s for large squares, {layers:,.0f} for the model's own"
        )
    if results.disagreement is not None:
        out.append(f"Methods on the same rows agree on the chosen answers to {results.disagreement:.1e} nats")
    return out + list(dict.fromkeys(map(_machine, environments)))


def _machine(environment: dict[str, Any]) -> str:
    named = [f"{p} {environment[p]}" for p in ("torch", "transformers", "peft", "trl") if p in environment]
    where = environment.get("gpu") or environment.get("processor")
    commit = environment.get("commit") or "unknown"
    return f"{where}, {environment.get('threads')} threads, {', '.join(named)}, commit {commit}"


def plot(results: Results) -> Figure:
    """Return a figure of the time per row (logarithmic) and the peak memory against N, one line per method."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines = results.lines_of("steps") or results.lines_of("growth")
    methods = list(dict.fromkeys(line.summary.method for line in lines))
    for method, colour in zip(methods, PALETTE * 2, strict=False):
        measured = [x for x in lines if x.summary.method == method and x.summary.cpu is not None]
        if not measured:
            continue
        at = [x.summary.negatives for x in measured]
        spreads = [getattr(x.summary, results.clock) for x in measured]
        style = {"color": colour, "marker": "o", "linewidth": 2.2 if method == PREFREC else 1.4}
        left.plot(at, [s.median for s in spreads], label=method, **style)
        left.fill_between(at, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.15, lw=0)
        right.plot(at, [x.summary.peak / 2**30 for x in measured], label=method, **style)
    _floor(left, results)
    ns = sorted({line.summary.negatives for line in lines})
    _axes(left, f"{CLOCKS[results.clock]} seconds per row", ns)
    _axes(right, "Peak memory, GiB", ns)
    right.set_ylim(bottom=0)
    if left.lines:
        left.set_yscale("log")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _floor(axes: Axes, results: Results) -> None:
    rate = "square_cpu" if results.clock == "cpu" else "square"
    seconds = {
        work["negatives"]: work["floor_flops"] / results.rates[name][rate]
        for name, work in results.workloads.items()
        if work["section"] == "steps" and name in results.rates
    }
    at = sorted(seconds)
    if at:
        axes.plot(at, [seconds[n] for n in at], color="#777777", linestyle=":", label="floor: matrix products alone")


def _axes(axes: Axes, label: str, ns: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Negatives N")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _table(results: Results, section: str) -> Table:
    table = Table(title=TITLES[section], title_justify="left")
    first = "N" if section in ("steps", "growth") else "titles"
    for column in (first, "method", "rows", "CPU s/row", "range", "wall s/row", "tokens/s", "peak GiB"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for column in ("× time", "× memory", "floor: squares", "layers", "TFLOP/s", "MFU"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    shown = None
    for line in results.lines_of(section):
        s = line.summary
        number = s.negatives if section in ("steps", "growth") else s.negatives + 1
        head = "" if number == shown else f"{number:,}"
        shown = number
        table.add_row(head, s.method, *_figures(line), s.note)
    return table


def _figures(line: Line) -> list[str]:
    s = line.summary
    if s.cpu is None or s.wall is None:
        return ["-"] * 12
    return [
        f"{s.rows:.3g}",
        f"{s.cpu.median:.3g}",
        _range(s.cpu),
        f"{s.wall.median:.3g}",
        f"{s.tokens / s.wall.median:,.0f}",
        f"{s.peak / 2**30:.2f}",
        _times(line.times),
        _times(line.memory),
        _share(line.share_square),
        _share(line.share_layers),
        "-" if line.flops is None else f"{line.flops / 1e12:.3g}",
        _share(line.utilisation),
    ]


def _range(spread: Spread) -> str:
    return f"{spread.low:.3g}–{spread.high:.3g} ({spread.n})"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}×"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"
