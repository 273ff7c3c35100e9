"""Measurements as a bench writes them."""

from typing import Any


def measured(repetition: int, cpu_s: float, **changes: Any) -> dict[str, Any]:
    """A measurement of two rows."""
    what = {"kind": "measurement", "section": "steps", "negatives": 3, "method": "published"}
    times = {"repetition": repetition, "cpu_s": cpu_s, "wall_s": cpu_s / 2, "elapsed_s": 3 * cpu_s}
    sizes = {"rows": 2, "tokens": 100, "resident_bytes": 10, "peak_bytes": 100 * cpu_s}
    return {**what, **times, **sizes, "note": "", "facts": {}, **changes}
