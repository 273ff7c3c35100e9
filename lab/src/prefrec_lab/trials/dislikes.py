"""Trial E6 (lab/protocol/e6.yaml): make the run of a seed, measure it, and write lab/results/73-dislikes.json.

    python -m prefrec_lab.datasets.lastfm_counts HETREC COUNTS        # the files of lastfm-counts
    python -m prefrec_lab.trials.dislikes movielens-100k RUN --seed 9 --split validation   # prints settings
    python -m prefrec_lab.trials.dislikes lastfm-counts RUN --seed 3 --path COUNTS --split test   # once, with them
    python -m prefrec_lab.trials.dislikes --table                     # the result, from the answers of all seeds

A run that was stopped goes on. On validation examples, all settings of the grid are compared. On test examples, the
arms have those of `settings`. Gains on test examples at each λ are kept in lab/results/answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from prefrec.console import say
from prefrec.evaluation import metrics_for
from prefrec.evaluation.metrics import target_ranks
from prefrec.evaluation.preferences import within_user_auc
from prefrec.sections import RANKERS
from prefrec_lab.curves import Curve, Values
from prefrec_lab.findings import Tested
from prefrec_lab.heads import Head
from prefrec_lab.results import PROTOCOLS, RESULTS, ROOT
from prefrec_lab.trials.dislikes_scores import (
    DISLIKED,
    LOSSES,
    SFT,
    WITH_MEAN,
    Arms,
    Asked,
    Scores,
    questions,
    rated,
)
from prefrec_lab.trials.shared import Answers, declared_table, keep_answers, make_run, seeds_in_words, tell

TRIAL = PROTOCOLS / "e6.yaml"
RESULT = RESULTS / "73-dislikes.json"
GAINS, AUC = "gains", "auc"
"""Columns of the kept answers: NDCG@10 at each λ, and the AUC of a direction."""
SHOWN = (0.5, 1, 2, 4)
"""Values of λ in the table of curves."""


def along(asked: Asked, base: Scores, direction: Scores, lambdas: Sequence[float]) -> Values:
    """Return NDCG@10 [B, K] of the targets by base + λ·direction, which has the standard deviation of the base."""
    ndcg, unit = metrics_for([10])["ndcg@10"], _unit(asked, base, direction)
    columns = [ndcg(*target_ranks(base + np.float32(own) * unit, asked.targets)) for own in lambdas]
    return np.stack(columns, axis=1)


def _unit(asked: Asked, base: Scores, direction: Scores) -> Scores:
    return direction * (asked.spread(base) / asked.spread(direction))


def curve(kinds: Mapping[str, Asked], scores: Mapping[str, tuple[Scores, Scores]], lambdas: Sequence[float]) -> Curve:
    """Return the curve of `scores`: kind of target → base and direction."""
    liked, disliked = (along(kinds[kind], *scores[kind], lambdas) for kind in ("liked", "disliked"))
    return Curve(liked, disliked)


def chosen(arms: Arms) -> dict[str, Any]:
    """Return the settings and the weights beside the mean that have the lowest summary on validation examples."""
    trial = arms.trial
    kinds = rated(arms, "validation")
    heads = arms.heads({})
    settings: dict[str, Any] = {}
    for arm in sorted(LOSSES, key=DISLIKED.__eq__):  # the direction of DISLIKED needs the arm LIKED
        found = []
        for rate in trial["grid"]["rate"]:
            for epochs, head in zip(
                trial["grid"]["epochs"], arms.train(arm, rate, trial["grid"]["epochs"]), strict=True
            ):
                tried = {**heads, arm: head}
                scores = {kind: (own.base(SFT, heads), own.reward(arm, tried)) for kind, own in kinds.items()}
                made = curve(kinds, scores, trial["lambdas"])
                say(f"{arm}, rate {rate:g}, {epochs} epochs: {_in_words(made)}")
                found.append((made.summary(), {"rate": rate, "epochs": epochs}, head))
        _, settings[arm], heads[arm] = min(found, key=lambda one: one[0])
    settings["both"] = {arm: _best_weight(arms, kinds, heads, arm) for arm in WITH_MEAN}
    return settings


def _best_weight(arms: Arms, kinds: Mapping[str, Asked], heads: Mapping[str, Head], arm: str) -> float:
    """Return the weight beside the mean with the lowest summary on validation examples."""
    found = []
    for weight in (0.0, *arms.trial["both"]):
        scores = {}
        for kind, own in kinds.items():
            mean = np.broadcast_to(own.means()[0], own.unseen.shape)
            scores[kind] = own.base(SFT, heads), own.together(mean, own.reward(arm, heads), weight)
        made = curve(kinds, scores, arms.trial["lambdas"])
        say(f"mean + {weight:g} · {arm}: {_in_words(made)}")
        found.append((made.summary(), weight))
    return min(found[1:])[1]  # the first one is the mean alone, for comparison


def _in_words(made: Curve) -> str:
    start, (last, part) = made.disliked[:, 0].mean(), made.reach()
    return f"disliked {made.summary():.4f} (at λ = 0 {start:.4f}; λ number {last + part:.2f})"


def answered(arms: Arms, heads: Mapping[str, Head], both: Mapping[str, float]) -> Iterator[pl.DataFrame]:
    """Yield the gains of all curves on test examples: a row per kind of target, curve and example."""
    trial = arms.trial
    for kind, asked in rated(arms, "test").items():
        say(f"{arms.run.folder.name}: {len(asked.examples):,} {kind} test examples")
        directions = asked.directions(heads, both)
        ids = {"user_id": asked.users, "target": [e.target for e in asked.examples]}
        for name, start, direction in needed(trial["families"], directions):
            gains = along(asked, asked.base(start, heads), direction, trial["lambdas"])
            of_curve = pl.Series(gains.astype(np.float32), dtype=pl.Array(pl.Float32, gains.shape[1]))
            yield pl.DataFrame({"kind": kind, "ranker": name, **ids, GAINS: of_curve})


def needed(
    families: Mapping[str, Sequence[Sequence[str]]], directions: Mapping[str, Scores]
) -> Iterator[tuple[str, str, Scores]]:
    """Yield name, base and direction of each curve that a family compares, once."""
    names = [name for family, pairs in families.items() if family != AUC for pair in pairs for name in pair]
    for name in dict.fromkeys(names):
        start, _, direction = name.rpartition(": ")
        yield name, start or SFT, directions[direction]


def judged(arms: Arms, heads: Mapping[str, Head], both: Mapping[str, float]) -> pl.DataFrame:
    """Return the AUC of each direction, and of SFT's log π, on test users: a row per score and user."""
    asked, items, liked = questions(arms, "test")
    disliked = (items >= 0) & ~liked
    scores = {SFT: heads[SFT].logps(asked.hidden).numpy(), **asked.directions(heads, both)}
    frames = []
    for name, own in scores.items():
        picked = np.take_along_axis(own, np.maximum(items, 0), axis=1)
        values = within_user_auc(picked.astype(np.float64), liked, disliked)
        frames.append(pl.DataFrame({"ranker": name, "user_id": asked.users, "target": "", AUC: values}))
    return pl.concat(frames)


class Measured:
    """The kept answers of all seeds to a data set.

    Args:
        name: of the data set.
        lambdas: of the curves.
    """

    def __init__(self, name: str, lambdas: Sequence[float]) -> None:
        self.name, self.lambdas = name, lambdas
        self.liked, self.disliked = (Answers.to(f"e6-{name}", "test", kind=kind) for kind in ("liked", "disliked"))
        self.auc = Answers.to(f"e6-{name}", AUC)

    def curves(self, name: str) -> list[Curve]:
        """Return a curve of each seed."""
        gains = (own.column(name, GAINS).astype(np.float64) for own in (self.liked, self.disliked))
        return [Curve(*own) for own in zip(*gains, strict=True)]

    def tested(self, family: str, pairs: Sequence[Sequence[str]]) -> list[Tested]:
        """Return the differences of a family."""
        out = []
        for first, second in pairs:
            name = f"{self.name}: {first} − {second}"
            if family == AUC:  # a row is a user, and has no target
                users = targets = self.auc.users
                values = [self.auc.column(one, AUC) for one in (first, second)]
            else:
                users, targets = (getattr(self.liked, c) + getattr(self.disliked, c) for c in ("users", "targets"))
                values = [np.stack([own.values() for own in self.curves(one)]) for one in (first, second)]
            out.append(Tested(name, values[0], values[1], users, targets))
        return out

    def summaries(self) -> list[list[str]]:
        """Return a row per curve: λ, both gains there, and those at some λ."""
        rows = []
        for name in self.liked.names:
            curves = self.curves(name)
            reached = np.mean([np.interp(sum(own.reach()), range(len(self.lambdas)), self.lambdas) for own in curves])
            liked, disliked = (
                np.mean([getattr(c, kind) for c in curves], axis=(0, 1)) for kind in ("liked", "disliked")
            )
            at = [f"{liked[k]:.4f} / {disliked[k]:.4f}" for k in map(self.lambdas.index, SHOWN)]
            summary = np.mean([own.summary() for own in curves])
            rows.append(
                [self.name, name, f"{liked[0]:.4f}", f"{disliked[0]:.4f}", f"{reached:.2f}", f"{summary:.4f}", *at]
            )
        return rows

    def counts(self) -> str:
        """Return how many targets were ranked."""
        return f"{self.name} {len(self.liked.users):,} liked, {len(self.disliked.users):,} disliked"


def measured(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the computed fields of the result, from the kept answers of all seeds."""
    sets = [Measured(name, trial["lambdas"]) for name in trial["sets"]]
    shown = [f"λ = {own:g}: liked / disliked" for own in SHOWN]
    start = ["liked, λ = 0", "disliked, λ = 0", "λ reached", "disliked there"]
    tables = [
        {
            "title": "How far dislikes fall while liked targets keep their NDCG@10",
            "columns": ["data", "direction", *start, *shown],
            "rows": [row for own in sets for row in own.summaries()],
        }
    ]
    count = 0
    for family, pairs in trial["families"].items():
        tested = [one for own in sets for one in own.tested(family, pairs)]
        count += len(tested)
        rules = {"level": trial["level"], "equivalence": trial["equivalence"][family]}
        table = declared_table(tested, rules, f"The declared differences: {family}")
        metric = "AUC" if family == AUC else "disliked targets, NDCG@10"
        tables.append({**table, "columns": [table["columns"][0], metric, *table["columns"][2:]]})
    rows = [[own.name, name, f"{own.auc.column(name, AUC).mean():.3f}"] for own in sets for name in own.auc.names]
    users = " and ".join(f"{len(own.auc.users):,}" for own in sets)
    tables.append(
        {
            "title": f"AUC of liked over disliked items, {users} users",
            "columns": ["data", "score", "AUC"],
            "rows": rows,
        }
    )
    seeds = seeds_in_words(sets[0].liked.seeds)
    targets = "; ".join(own.counts() for own in sets)
    return {"n": f"test targets: {targets}; {seeds}; {count} comparisons", "tables": tables}


def main() -> None:
    """Make the run of a seed and measure it, or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", help="name of the data set")
    parser.add_argument("run", nargs="?", type=Path, help="folder of the run")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--path", type=Path, help="folder of log.csv and artists.csv")
    parser.add_argument("--table", action="store_true", help="write the result")
    arguments = parser.parse_args()
    trial: dict[str, Any] = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    if arguments.table:
        tell(measured(trial), RESULT)
        return
    name, of_set = arguments.set, trial["sets"][arguments.set]
    changes = []
    if arguments.path:
        changes = [f"data.interactions={arguments.path / 'log.csv'}", f"data.items={arguments.path / 'artists.csv'}"]
    recipe, sections = ROOT / "recipes" / f"{of_set['recipe']}.yaml", {**of_set["sections"], **trial["recipe"]}
    run = make_run(recipe, arguments.run, sections, arguments.seed, changes, until=RANKERS)
    arms = Arms(run, trial, of_set)
    if arguments.split == "validation":
        say(yaml.safe_dump({name: chosen(arms)}, default_flow_style=None))
        return
    settings = trial["settings"][name]
    heads = arms.heads({arm: settings[arm] for arm in LOSSES})
    keep_answers(pl.concat(answered(arms, heads, settings["both"])), f"e6-{name}", "test", arguments.seed)
    keep_answers(judged(arms, heads, settings["both"]), f"e6-{name}", AUC, arguments.seed)


if __name__ == "__main__":
    main()
