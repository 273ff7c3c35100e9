"""What the records say: medians, ratios to prefrec, shares of the floor, growth with N."""

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
"""Dense bfloat16 TFLOP/s by the makers' data sheets, without sparsity; of two names that fit the first counts."""


@dataclass(frozen=True)
class Line:
    """A way at one N.

    Attributes:
        summary: its medians.
        times: its time a row ÷ that of prefrec (CPU on a CPU, wall on a GPU); None where either is missing.
        memory: its peak ÷ that of prefrec.
        share_square: floor ÷ its time (the same kind of time), the floor at the rate of large squares.
        share_layers: the same, at the rate of the model's own matrices.
        flops: FLOPs of the floor, those that no way can do without, a second of its wall time.
        utilisation: `flops` ÷ the device's peak; None where that is not known.
    """

    summary: Summary
    times: float | None = None
    memory: float | None = None
    share_square: float | None = None
    share_layers: float | None = None
    flops: float | None = None
    utilisation: float | None = None


@dataclass(frozen=True)
class Results:
    """All lines, and what goes with them.

    Attributes:
        lines: in the order of the table.
        growth: N → time of a prefrec row ÷ that at the smallest N.
        rates: "section N" → median rates of matrix products, FLOPs a second.
        workloads: "section N" → what its rows are.
        clock: `cpu` or `wall`: which time the ratios are of.
        disagreement: largest difference, over all N, between ways that scored the same rows in the mean
            log-probability of the chosen answers; None where no two did.
    """

    lines: tuple[Line, ...]
    growth: dict[int, float] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    clock: str = "cpu"
    disagreement: float | None = None

    def of(self, section: str) -> list[Line]:
        """The lines of a section."""
        return [line for line in self.lines if line.summary.section == section]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def results_of(settings: BenchSettings, records: Sequence[dict[str, Any]], *, gpu: bool) -> Results:
    """Results of the settings' coverage and of all that was measured before; what lacks a measurement says so.

    Args:
        settings: what was asked for.
        records: from `prefrec_lab.bench.records.read_records`.
        gpu: measured on one: then wall time is compared, else CPU time.
    """
    clock = "wall" if gpu else "cpu"
    found = {key_of(r): None for r in records if r["kind"] in ("measurement", "failure") and r["method"] != MATMUL}
    wanted = [("steps", n, m) for n in settings.negatives for m in settings.methods if "steps" in settings.sections]
    keys = sorted(dict.fromkeys([*wanted, *found]), key=lambda k: (SECTIONS.index(k[0]), k[1]))
    rates = _rates(records)
    workloads = {f"{r['section']} {r['negatives']}": r for r in records if r["kind"] == "workload"}
    missing = f"not run: budget of {settings.budget_minutes:g} min" if settings.budget_minutes else "not run"
    summaries = {key: summarise(records, key, missing) for key in keys}
    peak = peak_flops(settings, records)
    lines = []
    for key, summary in summaries.items():
        best = summaries.get((key[0], key[1], PREFREC))
        place = f"{key[0]} {key[1]}"
        lines.append(_line(summary, best, rates.get(place), workloads.get(place), clock, peak))
    return Results(tuple(lines), _growth(summaries, clock), rates, workloads, clock, _disagreement(records))


def peak_flops(settings: BenchSettings, records: Sequence[dict[str, Any]]) -> float | None:
    """FLOPs a second that the device has at most: as the settings say, or as the data sheet of its GPU does.

    None in other types than bfloat16, on a CPU, or on a GPU that is not in `PEAKS`, where the settings do not say.
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
    mine, other = getattr(summary, clock), getattr(best, clock, None)
    if best is not None and other is not None:
        times, memory = mine.median / other.median, summary.peak / best.peak
    if workload is None:
        return Line(summary, times, memory)
    line = Line(summary, times, memory, flops=workload["floor_flops"] / summary.wall.median)
    if peak is not None and line.flops is not None:
        line = replace(line, utilisation=line.flops / peak)
    if rates is None:
        return line
    end = "_cpu" if clock == "cpu" else ""
    least = workload["floor_flops"] / mine.median
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
        if found := measurements(records, key):
            names = found[0]["facts"]
            out[f"{key[0]} {key[1]}"] = {name: statistics.median(r["facts"][name] for r in found) for name in names}
    return out


def _disagreement(records: Sequence[dict[str, Any]]) -> float | None:
    """Largest spread of the chosen answers' log-probability among ways that scored as many rows, the same ones."""
    seen: dict[Any, dict[str, float]] = {}
    for r in records:
        if r["kind"] == "measurement" and "logps/chosen" in r["facts"]:
            alike = seen.setdefault((r["section"], r["negatives"], r["rows"]), {})
            alike[r["method"]] = r["facts"]["logps/chosen"]
    spreads = [max(of.values()) - min(of.values()) for of in seen.values() if len(of) > 1]
    return max(spreads, default=None)
