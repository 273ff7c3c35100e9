"""Simulate how often intervals contain the truth: `python scripts/interval_coverage.py [TRIALS]` prints a table.

Rows have effects of users and of targets. Heavy-tailed designs give a few users most of the rows, or a few targets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrec.evaluation import mean_interval, paired_difference

Floats = NDArray[np.float64]
LONGEST = 300
"""Most rows of a user."""


def one(rng: np.random.Generator, users: int) -> NDArray[np.int64]:
    """Return one row for each user."""
    return np.ones(users, dtype=np.int64)


def few(rng: np.random.Generator, users: int) -> NDArray[np.int64]:
    """Return one to five rows."""
    return rng.integers(1, 6, users)


def pareto(power: float) -> Callable[[np.random.Generator, int], NDArray[np.int64]]:
    """Return a draw of rows by a Pareto law, P(rows > x) = x^−power, at most `LONGEST`."""
    return lambda rng, users: np.minimum((1 - rng.random(users)) ** (-1 / power), LONGEST).astype(np.int64)


@dataclass(frozen=True)
class Design:
    """How rows are drawn.

    Attributes:
        users: number of users.
        rows: draws the number of rows of each.
        targets: number of items, drawn with P ∝ 1 / place^`zipf`; 0: each row has a target of its own.
        of_users, of_targets: standard deviations of their effects; that of a row is 1.
        heavy: correlation of a user's effect with the logarithm of the number of rows.
        full: full ranking, where most examples have no hit, instead of candidate sets of 20.
    """

    users: int
    rows: Callable[[np.random.Generator, int], NDArray[np.int64]]
    targets: int = 0
    zipf: float = 1.0
    of_users: float = 0.8
    of_targets: float = 0.0
    heavy: float = 0.0
    full: bool = False


DESIGNS = {
    "one row a user": Design(400, one),
    "1 to 5 rows a user": Design(200, few),
    "pareto 1.5 rows a user": Design(300, pareto(1.5)),
    "pareto 1.1 rows a user": Design(300, pareto(1.1), of_users=1.2),
    "pareto 1.1, 60 users": Design(60, pareto(1.1), of_users=1.2),
    # In the next two a few users decide the truth itself: means are covered in 92% and 93% only.
    "pareto 1.1, easier long users, r 0.3": Design(300, pareto(1.1), of_users=1.2, heavy=-0.3),
    "pareto 1.1, easier long users, r 0.6": Design(300, pareto(1.1), of_users=1.2, heavy=-0.6),
    "63 targets": Design(600, one, 63, of_targets=0.8),
    "63 targets, zipf 0.7, 1 to 5 rows": Design(300, few, 63, 0.7, of_targets=0.8),
    "200 targets, pareto 1.2": Design(300, pareto(1.2), 200, of_targets=0.8),
    "full ranking": Design(1500, one, full=True),
    "full ranking, 500 targets": Design(1500, few, 500, 0.8, of_targets=0.5, full=True),
}


def draw(
    design: Design, rng: np.random.Generator
) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64] | None]:
    """Return NDCG@10 of two rankers [B], equal in expectation, with the user and the target of each row [B]."""
    rows = design.rows(rng, design.users)
    users, n = np.repeat(np.arange(design.users), rows), int(rows.sum())
    logs = np.log(rows)
    length = (logs - logs.mean()) / max(logs.std(), 1e-9)
    chance = np.arange(1, design.targets + 1.0) ** -design.zipf
    items = rng.choice(design.targets, n, p=chance / chance.sum()) if design.targets else np.arange(n)
    shared = [rng.normal(size=design.users), rng.normal(size=design.targets or n)]
    values = []
    for _ in range(2):
        # Half of the variance of an effect is shared by both rankers.
        own = [np.sqrt(0.5) * (z + rng.normal(size=len(z))) for z in shared]
        taste = design.heavy * length + np.sqrt(1 - design.heavy**2) * own[0]
        latent = design.of_users * taste[users] + design.of_targets * own[1][items] + rng.normal(size=n)
        values.append(_ndcg(latent, design.full, rng))
    return values[0], values[1], users, items if design.targets else None


def _ndcg(latent: Floats, full: bool, rng: np.random.Generator) -> Floats:
    if full:
        ranks = 1 + np.floor(np.exp(6.5 + 2 * latent) * rng.exponential(size=len(latent)))
    else:
        ranks = 1.0 + rng.binomial(19, 1 / (1 + np.exp(1 - latent)))
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def coverage(
    design: Design, trials: int, *, paired: bool = False, truth_draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Return how often an interval holds the truth, and how often one over users alone does.

    They are of a mean or, if `paired`, of a difference. The truth of a mean is that of `truth_draws` other samples.
    """
    rng = np.random.default_rng(seed)
    truth = 0.0
    if not paired:
        others = (draw(design, rng) for _ in range(truth_draws))
        sums = np.array([(a.sum() + b.sum(), 2 * len(a)) for a, b, *_ in others])
        truth = sums[:, 0].sum() / sums[:, 1].sum()
    inside = np.zeros((trials, 2))
    for trial in range(trials):
        a, b, users, items = draw(design, rng)
        for way, targets in enumerate((items, None)):
            found = paired_difference(a, b, users, targets) if paired else mean_interval(a, users, targets)
            inside[trial, way] = found.low <= truth <= found.high
    both, alone = inside.mean(axis=0).tolist()
    return both, alone


def main(trials: int) -> None:
    """Print the table."""
    error = np.sqrt(0.05 * 0.95 / trials)
    sys.stdout.write(f"95% intervals that hold the truth: share of {trials:,} trials, standard error {error:.3f}\n")
    sys.stdout.write(f"{'design':38}{'mean':>8}{'(users)':>9}{'difference':>12}{'(users)':>9}\n")
    for name, design in DESIGNS.items():
        found = [share for paired in (False, True) for share in coverage(design, trials, paired=paired)]
        sys.stdout.write(f"{name:38}{found[0]:8.3f}{found[1]:9.3f}{found[2]:12.3f}{found[3]:9.3f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
