"""Measurements as a bench writes them."""

from __future__ import annotations

from typing import Any


def measured(repetition: int, cpu_s: float, **changes: Any) -> dict[str, Any]:
    """A measurement of two rows."""
    return {
        "kind": "measurement",
        "section": "steps",
        "negatives": 3,
        "method": "published",
        "repetition": repetition,
        "cpu_s": cpu_s,
        "wall_s": cpu_s / 2,
        "rows": 2,
        "tokens": 100,
        "resident_bytes": 10,
        "peak_bytes": 100 * cpu_s,
        "note": "",
        "facts": {},
        "elapsed_s": 3 * cpu_s,
        **changes,
    }
