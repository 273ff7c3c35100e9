"""Numbers and names as people read them."""

from __future__ import annotations

import math
from typing import Any

from prefrec.evaluation import Interval, PairedDifference
from prefrec.evaluation.tables import metric_label as metric_label

_NAMES = {"sft": "SFT", "dpo": "DPO", "s-dpo": "S-DPO", "dmpo": "DMPO", "bpr": "BPR"}


def label(name: str) -> str:
    """How a ranker or stage is written: `s-dpo` → S-DPO; names of the user's own stay as they are."""
    return _NAMES.get(name, name)


def number(value: float, digits: int = 3) -> str:
    """`0.412`, with a true minus sign; a dash where there is no number."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """`+0.080` or `−0.080`."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def interval_ends(interval: Interval) -> str:
    """`[0.370, 0.450]`, with signs for a difference, never broken over lines; "no interval" where there is none."""
    if math.isnan(interval.low):
        return "no interval"
    form = signed if isinstance(interval, PairedDifference) else number
    return f"[{form(interval.low)},\u00a0{form(interval.high)}]"


def with_interval(interval: Interval) -> str:
    """`0.412 [0.370, 0.450]`."""
    form = signed if isinstance(interval, PairedDifference) else number
    return f"{form(interval.mean)} {interval_ends(interval)}"


def includes_zero(difference: PairedDifference) -> bool:
    """True where the interval does not tell the difference from 0 (or there is no interval)."""
    return not (difference.low > 0 or difference.high < 0)


def clock(seconds: Any) -> str:
    """`45 s`, `12 min 05 s` or `3 h 20 min`; a dash where it is not known."""
    if not isinstance(seconds, int | float):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
