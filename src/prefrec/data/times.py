"""Times of a log: their order, and where a log ends."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

SUBSECOND = "subsecond"
"""Column of a log whose times are finer than a second: microseconds after `timestamp`."""
LONE_GAP, LONE_GAPS = 30 * 86_400, 3
"""Seconds after which a time may be lone, and how many times the largest gap before it."""
# One time in `_LONE` may be lone, of at least `_LEAST` times.
_LONE, _LEAST = 1000, 100


def time_columns(log: pl.DataFrame) -> list[str]:
    """Return the columns by which a log is sorted in time: `timestamp`, then `SUBSECOND` if present."""
    return ["timestamp", *([SUBSECOND] if SUBSECOND in log.columns else [])]


def most_lone(count: int) -> int:
    """Return how many of this number of times may be lone: one in a thousand, at least one; none of a few."""
    return max(1, count // _LONE) if count >= _LEAST else 0


def log_end(times: NDArray[np.int64]) -> int:
    """Return the time at which a log ends: its last time that is not lone.

    One wrong time a year ahead would otherwise make all recent interactions old. Times are lone if they are few
    (`most_lone`) and come after a gap of over 30 days that is also over three times as long as each gap in the newer
    half of all times before. If no time is lone, the end is the maximum.

    Args:
        times: [E] in seconds, ascending; at least one.
    """
    kept = len(times) - most_lone(len(times))
    gaps = np.diff(times[kept - 1 :])
    usual = int(np.diff(times[kept // 2 : kept]).max(initial=0))
    far = np.flatnonzero(gaps > max(LONE_GAP, LONE_GAPS * usual))
    return int(times[kept - 1 + far[0]] if len(far) else times[-1])
