"""Format numbers and names for people."""

from __future__ import annotations

import math
from typing import Any

from prefrec.evaluation import Interval, PairedDifference
from prefrec.evaluation.labels import metric_label as metric_label

_NAMES = {"sft": "SFT", "dpo": "DPO", "s-dpo": "S-DPO", "dmpo": "DMPO", "bpr": "BPR"}


def label(name: str) -> str:
    """Return the display name of a ranker or stage, such as S-DPO for `s-dpo`; a user's names stay as they are."""
    refit = " refit"
    if name.endswith(refit):
        return label(name.removesuffix(refit)) + refit
    return _NAMES.get(name, name)


def number(value: float, sign: str = "") -> str:
    """Return `0.412`, with a proper minus sign, and with a plus sign if `sign` is "+"; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:{sign}.3f}".replace("-", "−")


def signed(value: float) -> str:
    """Return `+0.080` or `−0.080`."""
    return number(value, sign="+")


def interval_ends(interval: Interval) -> str:
    """Return `[0.370, 0.450]`, with signs for a difference and without line breaks, or "no interval"."""
    if math.isnan(interval.low):
        return "no interval"
    sign = "+" if isinstance(interval, PairedDifference) else ""
    return f"[{number(interval.low, sign=sign)},\u00a0{number(interval.high, sign=sign)}]"


def with_interval(interval: Interval) -> str:
    """Return `0.412 [0.370, 0.450]`, or `0.412 (no interval)`."""
    sign = "+" if isinstance(interval, PairedDifference) else ""
    ends = interval_ends(interval)
    return f"{number(interval.mean, sign=sign)} {f'({ends})' if math.isnan(interval.low) else ends}"


def p_value(p: float) -> str:
    """Return `p = 0.042`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p)}"


def includes_zero(difference: PairedDifference) -> bool:
    """Return True if the interval includes 0, or there is no interval."""
    return not (difference.low > 0 or difference.high < 0)


def clock(seconds: Any) -> str:
    """Return `45 s`, `12 min 05 s` or `3 h 20 min`; a dash if the time is unknown."""
    if not isinstance(seconds, int | float):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
