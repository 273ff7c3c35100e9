"""Simulate how often intervals contain the truth, for lab/results/60-interval-coverage.json.

`python -m prefrec_lab.trials.interval_coverage [TRIALS]` prints a table. Rows have effects of users and of targets.
Heavy-tailed designs give a few users most of the rows, or a few targets. With `--shops` the table is of designs that
are resampled from the kept ranks of shops (`SHOPS`), and says how often the test of
the table (`prefrec_lab.wild`) rejects the truth there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.evaluation import mean_interval, metrics_for, paired_difference
from prefrec.evaluation.intervals import label_codes
from prefrec.evaluation.predictions import ranks_of
from prefrec_lab.ranks import read_ranks
from prefrec_lab.results import RANKS
from prefrec_lab.wild import wild_test

Floats = NDArray[np.float64]
LONGEST = 300
"""Most rows of a user."""
SHOPS = {
    "amazon-office": "title TF-IDF",
    "amazon-book": "transition graph",
    "amazon-office-log": "transition graph",
    "amazon-book-log": "transition graph",
}
"""Data set → its best baseline, which the blend is compared with."""
ADDED = (("blend", "blend without s-dpo"), ("sequential-tower-sft", "sequential-tower"))
"""Blends with and without a language model, in older ranks and in newer ones."""
DRAWS = 199
"""Draws of the test in a trial."""


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
    """The way to draw rows.

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


@dataclass(frozen=True, eq=False)
class Shop:
    """A difference of two rankers on the test rows of a shop, in the order of the targets.

    Attributes:
        values: [B] difference in NDCG@10.
        users, targets: [B] codes.
        sizes: [G] number of rows of each target.
    """

    values: Floats
    users: NDArray[np.int64]
    targets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def effective_targets(self) -> float:
        """Number of targets with equal parts of the variance that would have the same kurtosis."""
        squares = np.bincount(self.targets, weights=self.values - self.values.mean()) ** 2
        return float(squares.sum() ** 2 / (squares**2).sum())

    def draw(self, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Return values, users and targets of another sample: targets are drawn, then rows of each drawn target.

        A target that is drawn twice is two targets, and a row that is drawn twice is of two users. Users keep the
        rows that they have of different targets. The truth is the mean of `values`.
        """
        count = len(self.sizes)
        drawn = np.sort(rng.integers(count, size=count))
        lengths, begins = self.sizes[drawn], (np.cumsum(self.sizes) - self.sizes)[drawn]
        targets = np.repeat(np.arange(count), lengths)
        rows = np.repeat(begins, lengths) + np.floor(rng.random(len(targets)) * np.repeat(lengths, lengths)).astype(
            int
        )
        order = np.lexsort((targets, rows))
        rows, targets = rows[order], targets[order]
        first = np.r_[True, rows[1:] != rows[:-1]]
        repeat = np.arange(len(rows)) - np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
        users = label_codes(self.users[rows] * (1 + int(repeat.max())) + repeat)
        return self.values[rows], users, targets


def shop(ranks: pl.DataFrame, ranker: str, against: str) -> Shop:
    """Return the difference of two rankers in ranks of a data set."""
    ndcg = metrics_for([10])["ndcg@10"]
    first, second = (ranks.filter(ranker=one).sort("target", "row") for one in (ranker, against))
    users, targets = (label_codes(first[column].to_numpy()) for column in ("user", "target"))
    return Shop(ndcg(*ranks_of(first)) - ndcg(*ranks_of(second)), users, targets, np.bincount(targets))


def shop_coverage(one: Shop, trials: int, *, seed: int = 0) -> tuple[float, float, float]:
    """Return how often the interval of a mean holds the truth, how often that over users alone, and the test's size.

    The size is the share of trials in which the test rejects the truth at a level of 5%.
    """
    rng, truth = np.random.default_rng(seed), float(one.values.mean())
    found = np.zeros((trials, 3))
    for trial in range(trials):
        values, users, targets = one.draw(rng)
        interval = mean_interval(values - truth, users, targets)
        p = wild_test(values - truth, users, targets, draws=DRAWS, seed=trial).p_value
        low, high = interval.user_low or 0.0, interval.user_high or 0.0
        found[trial] = interval.low <= 0 <= interval.high, low <= 0 <= high, p < 0.05
    both, alone, size = found.mean(axis=0).tolist()
    return both, alone, size


def shops_table(trials: int) -> list[list[str]]:
    """Return a row per shop and difference: name, effective targets, both coverages and the test's size."""
    rows = []
    for name, baseline in SHOPS.items():
        ranks = read_ranks(RANKS / f"{name}.parquet")
        for ranker, against in (("blend", baseline), *ADDED):
            if {ranker, against} <= {*ranks["ranker"]}:
                one = shop(ranks, ranker, against)
                shares = [f"{share:.3f}" for share in shop_coverage(one, trials)]
                rows.append([f"{name}: {ranker} − {against}", f"{one.effective_targets:.0f}", *shares])
    return rows


def print_shops(trials: int) -> None:
    """Print the table of shops."""
    sys.stdout.write(
        f"Differences in {trials:,} samples from shops: 95% intervals that hold the truth, and the share of"
    )
    sys.stdout.write(" tests that reject it at 5%\n")
    sys.stdout.write(f"{'difference':48}{'targets':>8}{'both':>8}{'users':>8}{'test':>8}\n")
    for name, *cells in shops_table(trials):
        sys.stdout.write(f"{name:48}" + "".join(f"{cell:>8}" for cell in cells) + "\n")


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
    words = sys.argv[1:]
    if words[:1] == ["--shops"]:
        print_shops(int(words[1]) if len(words) > 1 else 400)
    else:
        main(int(words[0]) if words else 4000)
