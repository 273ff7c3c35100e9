"""Measurements on disk, one JSON line each, written as they come; and their medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrec.data.readers import read_bytes
from prefrec.errors import DataError

RECORDS = "records.jsonl"
Key = tuple[str, int, str]
"""Section, N, method."""


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Add a line to the folder's records; a run that ends at any point keeps the lines before."""
    path = folder / RECORDS
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(record, ensure_ascii=False) + "\n")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of the folder's records; half a line, left by a run that was killed, is passed over.

    Raises:
        DataError: a whole line is no record.
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
    """What a measurement or failure is of."""
    return record["section"], record["negatives"], record["method"]


def measurements(records: Iterable[dict[str, Any]], key: Key) -> list[dict[str, Any]]:
    """The measurements of `key`, without those that warmed up."""
    return [r for r in records if r["kind"] == "measurement" and key_of(r) == key and r["repetition"] > 0]


def failure(records: Iterable[dict[str, Any]], key: Key) -> str | None:
    """Why the last attempt to measure `key` failed; None where it did not."""
    last = _last(records, key)
    return last["reason"] if last and last["kind"] == "failure" else None


def is_final(records: Iterable[dict[str, Any]], key: Key) -> bool:
    """True where measuring `key` again would fail again: its memory did not suffice."""
    last = _last(records, key)
    return bool(last and last["kind"] == "failure" and last["final"])


def _last(records: Iterable[dict[str, Any]], key: Key) -> dict[str, Any] | None:
    found = [r for r in records if r["kind"] in ("measurement", "failure") and key_of(r) == key]
    return found[-1] if found else None


@dataclass(frozen=True)
class Figure:
    """Median, smallest and largest of n values."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """One line of the table.

    Attributes:
        section, negatives, method: what was measured.
        cpu, wall: seconds a row; None where nothing was measured.
        peak: bytes, median over the repetitions.
        resident: bytes in use before the first part.
        rows: rows a repetition.
        tokens: tokens a row through the policy, padding left out.
        note: scaling, or why there is no figure.
    """

    section: str
    negatives: int
    method: str
    cpu: Figure | None = None
    wall: Figure | None = None
    peak: float = 0.0
    resident: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0
    note: str = ""


def summarise(records: Sequence[dict[str, Any]], key: Key, missing: str = "not run") -> Summary:
    """The medians of `key`, or why there are none.

    Args:
        records: of the folder.
        key: section, N, method.
        missing: what to say where nothing was measured and nothing failed.
    """
    found = measurements(records, key)
    reason = failure(records, key)
    if not found:
        return Summary(*key, note=f"not run: {reason}" if reason else missing)
    notes = {r["note"] for r in found if r["note"]} | ({reason} if reason else set())
    return Summary(
        *key,
        cpu=_figure([r["cpu_s"] / r["rows"] for r in found]),
        wall=_figure([r["wall_s"] / r["rows"] for r in found]),
        peak=statistics.median(r["peak_bytes"] for r in found),
        resident=statistics.median(r["resident_bytes"] for r in found),
        rows=found[0]["rows"],
        tokens=found[0]["tokens"] / found[0]["rows"],
        note="; ".join(sorted(notes)),
    )


def _figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values), len(values))
