"""Results from the records: medians, ratios to prefrec, shares of the floor, growth with N."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prefrec_lab.bench.records import Summary, key_of, measurements, summarise
from prefrec_lab.bench.settings import MATMUL, PREFREC, SECTIONS, BenchSettings

PEAKS = {
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}
"""Dense bfloat16 TFLOP/s of the makers' data sheets, without sparsity; the first name that fits counts."""


@dataclass(frozen=True)
class Line:
    """One method at one N."""

    summary: Summary
    # its time per row ÷ that of prefrec (CPU on a CPU, wall on a GPU); None if either is missing
    times: float | None = None
    memory: float | None = None  # its peak ÷ that of prefrec
    # floor ÷ its time (of the same clock), with the floor at the rate of large squares
    share_square: float | None = None
    share_layers: float | None = None  # the same, at the rate of the model's own matrices
    flops: float | None = None  # FLOPs of the floor per second of its wall time
    utilisation: float | None = None  # `flops` ÷ the device's peak; None if that is not known


@dataclass(frozen=True)
class Results:
    """All lines of the table, with rates, descriptions and notes."""

    lines: tuple[Line, ...]  # in the order of the table
    growth: dict[int, float] = field(default_factory=dict)  # N → time of a prefrec row ÷ that at the smallest N
    # "section N" → median rates of matrix products, FLOPs per second
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)  # "section N" → description of its rows
    clock: str = "cpu"  # `cpu` or `wall`: the time that ratios compare
    # largest difference, over all N, between the mean log-probabilities of the chosen answers by methods that scored
    # the same rows; None if no two did
    disagreement: float | None = None

    def lines_of(self, section: str) -> list[Line]:
        """Return the lines of a section."""
        return [line for line in self.lines if line.summary.section == section]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def results_of(settings: BenchSettings, records: Sequence[dict[str, Any]], *, gpu: bool) -> Results:
    """Return the results of what the settings ask for and of all earlier measurements, with notes for missing ones.

    Args:
        gpu: True compares wall time, False CPU time.
    """
    clock = "wall" if gpu else "cpu"
    recorded = {key_of(r): None for r in records if r["kind"] in ("measurement", "failure") and r["method"] != MATMUL}
    wanted = [("steps", n, m) for n in settings.negatives for m in settings.methods if "steps" in settings.sections]
    keys = sorted(dict.fromkeys([*wanted, *recorded]), key=lambda k: (SECTIONS.index(k[0]), k[1]))
    rates = _rates(records)
    workloads = {f"{r['section']} {r['negatives']}": r for r in records if r["kind"] == "workload"}
    missing = f"not run: budget of {settings.budget_minutes:g} min" if settings.budget_minutes else "not run"
    summaries = {key: summarise(records, key, missing) for key in keys}
    peak = peak_flops(settings, records)
    lines = []
    for key, summary in summaries.items():
        best = summaries.get((key[0], key[1], PREFREC))
        work = f"{key[0]} {key[1]}"
        lines.append(_line(summary, best, rates.get(work), workloads.get(work), clock, peak))
    return Results(tuple(lines), _growth(summaries, clock), rates, workloads, clock, _disagreement(records))


def peak_flops(settings: BenchSettings, records: Sequence[dict[str, Any]]) -> float | None:
    """Return the device's peak in FLOPs per second, from the settings or the data sheet of its GPU.

    Without a setting it is None on a CPU, for types other than bfloat16, and for a GPU that is not in `PEAKS`.
    """
    if settings.peak_tflops is not None:
        return settings.peak_tflops * 1e12
    gpus = [str(r["environment"].get("gpu") or "") for r in records if r["kind"] == "session"]
    if settings.cpu or settings.dtype != "bfloat16" or not gpus:
        return None
    words = gpus[-1].replace("-", " ")
    return next((1e12 * peak for name, peak in PEAKS.items() if f" {name} " in f" {words} "), None)


def _line(
    summary: Summary,
    best: Summary | None,
    rates: dict[str, float] | None,
    workload: dict[str, Any] | None,
    clock: str,
    peak: float | None,
) -> Line:
    if summary.cpu is None or summary.wall is None:
        return Line(summary)
    times = memory = None
    own, other = getattr(summary, clock), getattr(best, clock, None)
    if best is not None and other is not None:
        times, memory = own.median / other.median, summary.peak / best.peak
    if workload is None:
        return Line(summary, times, memory)
    line = Line(summary, times, memory, flops=workload["floor_flops"] / summary.wall.median)
    if peak is not None and line.flops is not None:
        line = replace(line, utilisation=line.flops / peak)
    if rates is None:
        return line
    end = "_cpu" if clock == "cpu" else ""
    least = workload["floor_flops"] / own.median
    return replace(line, share_square=least / rates[f"square{end}"], share_layers=least / rates[f"layers{end}"])


def _growth(summaries: dict[Any, Summary], clock: str) -> dict[int, float]:
    seconds = {
        n: getattr(s, clock).median for (section, n, _), s in summaries.items() if section == "growth" and s.cpu
    }
    return {n: s / seconds[min(seconds)] for n, s in sorted(seconds.items())}


def _rates(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    keys = {key_of(r) for r in records if r["kind"] == "measurement" and r["method"] == MATMUL}
    out = {}
    for key in sorted(keys):
        if measured := measurements(records, key):
            names = measured[0]["facts"]
            out[f"{key[0]} {key[1]}"] = {
                name: statistics.median(r["facts"][name] for r in measured) for name in names
            }
    return out


def _disagreement(records: Sequence[dict[str, Any]]) -> float | None:
    """Return the largest spread of the chosen answers' log-probability among methods on the same rows."""
    seen: dict[Any, dict[str, float]] = {}
    for r in records:
        if r["kind"] == "measurement" and "logps/chosen" in r["facts"]:
            alike = seen.setdefault((r["section"], r["negatives"], r["rows"]), {})
            alike[r["method"]] = r["facts"]["logps/chosen"]
    spreads = [max(logps.values()) - min(logps.values()) for logps in seen.values() if len(logps) > 1]
    return max(spreads, default=None)
