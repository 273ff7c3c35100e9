"""The rule that decides what a declared difference is: above, below, equivalent or open.

All trials and the table of README use it. A family of differences is tested by a wild bootstrap over targets
(`prefrec_lab.wild`), and Holm's correction is over the family. What counts as equivalent was declared with each
trial: a share of the ranker compared with (`Share`), or a band around 0 (`Band`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefrec.evaluation.intervals import Interval, Labels, PairedDifference, holm, paired_difference
from prefrec_lab.wild import DRAWS, equivalence, wild_test

Word = Literal["above", "below", "equivalent", "open"]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tested:
    """A declared difference of two scores on the same examples.

    Attributes:
        name: of the difference.
        first: [K, B] values of K seeds; the difference is `first` − `second`.
        second: [K, B].
        users: [B] users of the examples.
        items: [B] targets of the examples.
    """

    name: str
    first: Values
    second: Values
    users: Labels
    items: Labels


@dataclass(frozen=True)
class Share:
    """Equivalent: two one-sided tests (TOST) place the difference within ± `share` of the mean of `second`.

    Their p-values are corrected like those of the differences.
    """

    share: float


@dataclass(frozen=True)
class Band:
    """Equivalent: the 95% interval over users and targets lies within ± `width`, in units of the metric."""

    width: float

    def contains(self, gap: Interval) -> bool:
        """Return True if the interval lies within the band."""
        return gap.low > -self.width and gap.high < self.width


@dataclass(frozen=True)
class Finding:
    """What the rule finds in a difference.

    Attributes:
        difference: its mean over seeds and examples, with both intervals.
        p, adjusted: p-value of the test, and after Holm's correction over the family.
        adjusted_equivalent: corrected p-value of the equivalence; None for a `Band`, which has none.
        word: `above` or `below` if the corrected test rejects 0, else `equivalent` or `open`.
    """

    difference: PairedDifference
    p: float
    adjusted: float
    adjusted_equivalent: float | None
    word: Word


def judge(
    family: Sequence[Tested], *, level: float, margin: Share | Band, draws: int = DRAWS, seed: int = 0
) -> list[Finding]:
    """Return what is found in each difference of a family.

    Args:
        family: the differences that Holm's correction is over.
        level: of all tests, after the correction.
        margin: what counts as equivalent.
        draws, seed: of the wild bootstrap.
    """
    gaps = [paired_difference(t.first.mean(axis=0), t.second.mean(axis=0), t.users, t.items) for t in family]
    p = [wild_test(t.first - t.second, t.users, t.items, draws=draws, seed=seed).p_value for t in family]
    same: list[float | None] = [None] * len(family)
    if isinstance(margin, Share):
        share = margin.share
        alone = [
            equivalence(t.first - t.second, t.second, t.users, t.items, margin=share, draws=draws, seed=seed)
            for t in family
        ]
        same = [*holm(alone)]
    found = []
    for gap, own, adjusted, close in zip(gaps, p, holm(p), same, strict=True):
        word: Word = "open"
        if adjusted < level:
            word = "above" if gap.mean > 0 else "below"
        elif margin.contains(gap) if isinstance(margin, Band) else close is not None and close < level:
            word = "equivalent"
        found.append(Finding(gap, own, adjusted, close, word))
    return found
