"""Two gains along a curve of scores base + λ·direction: what one loses while the other stays as it was at λ = 0.

The gains are those of examples with liked targets and of examples with disliked targets. The summary of a curve is
the mean gain of disliked targets at the largest λ at which that of liked targets is as high as at λ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The gains of one seed at K values of λ, the first of which is 0.

    Attributes:
        liked: [L, K] gains of examples with liked targets.
        disliked: [D, K] gains of examples with disliked targets.
    """

    liked: Values
    disliked: Values

    def reach(self) -> tuple[int, float]:
        """Return n and t: liked gains are as high as at λ = 0 up to λ_n + t·(λ_n+1 − λ_n), with 0 ≤ t < 1."""
        means = self.liked.mean(axis=0)
        last = int(np.flatnonzero(means >= means[0])[-1])
        if last == len(means) - 1:
            return last, 0.0
        return last, float((means[last] - means[0]) / (means[last] - means[last + 1]))

    def summary(self) -> float:
        """Return the mean gain of disliked targets where liked gains are as high as at λ = 0."""
        return float(self.values().mean())

    def values(self) -> Values:
        """Return [L + D] values whose mean is the summary, and whose spread is its error (delta method).

        λ depends on the liked examples. To the first order, a liked example therefore moves the summary by −slope ×
        (its gain there − its gain at λ = 0), where slope is the change of disliked over that of liked mean gains.
        """
        last, part = self.reach()
        rows = len(self.liked) + len(self.disliked)
        follow = min(last + 1, self.liked.shape[1] - 1)
        liked, disliked = ((1 - part) * own[:, last] + part * own[:, follow] for own in (self.liked, self.disliked))
        moved = np.zeros(len(liked))
        if follow > last:
            rise = (self.liked[:, follow] - self.liked[:, last]).mean()
            slope = (self.disliked[:, follow] - self.disliked[:, last]).mean() / rise
            moved = -slope * (liked - self.liked[:, 0])
        return np.concatenate([moved * rows / len(liked), disliked * rows / len(disliked)])
