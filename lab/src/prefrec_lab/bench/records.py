"""Measurements on disk, one JSON line each, written immediately; and their medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrec.errors import DataError
from prefrec.files import writing
from prefrec.intake.readers import read_bytes

RECORDS = "records.jsonl"
Key = tuple[str, int, str]
"""Section, N, method."""


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Append a line to the folder's records, so that an interrupted run keeps all earlier lines.

    Raise StorageError if the disk is full.
    """
    path = folder / RECORDS
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record, ensure_ascii=False) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all complete lines of the folder's records, without a partial line left by a killed run.

    Raises:
        DataError: a complete line is not a record.
    """
    path = folder / RECORDS
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or "kind" not in record:
            raise DataError(
                f"{path}, line {number}: expected a JSON object with kind, found {type(record).__name__}; "
                "remove the line, or give another folder"
            )
        records.append(record)
    return records


def key_of(record: dict[str, Any]) -> Key:
    """Return section, N and method of a measurement or failure."""
    return record["section"], record["negatives"], record["method"]


def measurements(records: Iterable[dict[str, Any]], key: Key) -> list[dict[str, Any]]:
    """Return the measurements of `key`, without the warm-up."""
    return [r for r in records if r["kind"] == "measurement" and key_of(r) == key and r["repetition"] > 0]


def failure(records: Iterable[dict[str, Any]], key: Key) -> str | None:
    """Return the reason if the last attempt to measure `key` failed, else None."""
    last = _last(records, key)
    return last["reason"] if last and last["kind"] == "failure" else None


def is_final(records: Iterable[dict[str, Any]], key: Key) -> bool:
    """Return True if `key` ran out of memory and would fail again."""
    last = _last(records, key)
    return bool(last and last["kind"] == "failure" and last["final"])


def _last(records: Iterable[dict[str, Any]], key: Key) -> dict[str, Any] | None:
    attempts = [r for r in records if r["kind"] in ("measurement", "failure") and key_of(r) == key]
    return attempts[-1] if attempts else None


@dataclass(frozen=True)
class Figure:
    """Median, smallest and largest of n values."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """One line of the table."""

    # section, negatives, method: identify what was measured
    section: str
    negatives: int
    method: str
    # cpu, wall: seconds per row; None without measurements
    cpu: Figure | None = None
    wall: Figure | None = None
    peak: float = 0.0  # bytes, median over the repetitions
    resident: float = 0.0  # bytes in use before the first part
    rows: float = 0.0  # rows per repetition
    tokens: float = 0.0  # tokens per row through the policy, without padding
    note: str = ""  # scaling, or the reason for a missing figure


def summarise(records: Sequence[dict[str, Any]], key: Key, missing: str = "not run") -> Summary:
    """Return the medians of `key`, or the reason why it was not measured.

    Args:
        missing: note for a key without measurements and failures.
    """
    measured = measurements(records, key)
    reason = failure(records, key)
    if not measured:
        return Summary(*key, note=f"not run: {reason}" if reason else missing)
    notes = {r["note"] for r in measured if r["note"]} | ({reason} if reason else set())
    return Summary(
        *key,
        cpu=_figure([r["cpu_s"] / r["rows"] for r in measured]),
        wall=_figure([r["wall_s"] / r["rows"] for r in measured]),
        peak=statistics.median(r["peak_bytes"] for r in measured),
        resident=statistics.median(r["resident_bytes"] for r in measured),
        rows=measured[0]["rows"],
        tokens=measured[0]["tokens"] / measured[0]["rows"],
        note="; ".join(sorted(notes)),
    )


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values), len(values))
