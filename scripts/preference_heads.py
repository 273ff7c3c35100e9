"""Align the head of an SFT model with item tokens to ratings, beside what items have for all users.

    python scripts/preference_heads.py runs/movielens-100k-ratings --out preferences.json

The run is finished up to `sft`, on data with `split: time-share`. The layers stay as they are. A history shows the
last items that the user rated above what others say of them. The policy's logits are those of the reference plus
h·A·v_i with hidden state h and item vector v_i, and A alone is trained. Each loss adds `OFFSET` × the user-centred
item mean, without the row's own user, to every answer's logit, so that A learns what the mean does not say.
A setting is chosen on the last fifth of the training part of all users. Then A is trained on the whole training part,
the weight λ is fitted to validation users, and test users are asked once.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from head_alignment import Head, hidden_states
from torch import Tensor

from prefrec.console import say
from prefrec.data import RankingExample, read_prepared
from prefrec.data.feedback import (
    AHEAD,
    PreferenceQuestion,
    Thresholds,
    centred_mean_scores,
    mean_rating_scores,
    preference_questions,
    with_opinions,
)
from prefrec.evaluation.preferences import Floats, Mask, Preferences, best_weight, mixture, spread, within_user_auc
from prefrec.lm.items import item_table
from prefrec.losses import preference_loss
from prefrec.pipeline.measure_preferences import (
    CENTRED,
    MEAN_RATING,
    POPULARITY,
    WITH_CENTRED,
    Answers,
    measure,
    swapped_histories,
)
from prefrec.recipe import load_recipe
from prefrec.stages.base import WEIGHTS
from prefrec.stages.encoders import prompt_encoder
from prefrec.training.weights import load_weights

WIDTH, LENGTH, REJECTED, BATCH = 96, 30, 7, 256
"""Principal directions of states and of item vectors, items of a history, rejected items of a row, rows of a step."""
OFFSET, DROPOUT = 1.5, 0.3
MAIN, PLAIN = "s-dpo", "s-dpo without the mean"
FREE, LIKED = ("softmax", "bpr"), "sft on the chosen"
LOSSES = (MAIN, PLAIN, "dpo", *FREE, LIKED)
"""Losses on the same rows; those that are `FREE` have no reference. `LIKED` has no rejected items."""
GRID: dict[str, list[Any]] = {"chosen": ["4 over 3", "gap 1"], "rate": [3e-3], "epochs": [4, 10]}


@dataclass(frozen=True)
class Opinions:
    """Ratings of a log beyond their users' means: by (user, item), and item → sum and number."""

    log: pl.DataFrame
    ratings: dict[tuple[str, str], float]
    centred: dict[tuple[str, str], float]
    sums: dict[str, tuple[float, int]]

    @classmethod
    def of(cls, log: pl.DataFrame) -> Opinions:
        """Return the opinions of a log with ratings."""
        rated = log.drop_nulls("rating").with_columns(x=pl.col("rating") - pl.col("rating").mean().over("user_id"))
        pairs = list(rated.select("user_id", "item_id", "rating", "x").iter_rows())
        sums = rated.group_by("item_id").agg(pl.col("x").sum(), n=pl.len())
        return cls(
            log,
            {(u, i): r for u, i, r, _ in pairs},
            {(u, i): x for u, i, _, x in pairs},
            {item: (x, n) for item, x, n in sums.iter_rows()},
        )

    def mean(self, item: str, without: str | None = None) -> float:
        """Return an item's user-centred mean, shrunk by five ratings, without the rating of one user."""
        total, n = self.sums.get(item, (0.0, 0))
        own = self.centred.get((without, item)) if without is not None else None
        return total / (n + 5) if own is None else (total - own) / (n + 4)

    def praised(self) -> dict[str, tuple[list[str], list[int]]]:
        """Return, per user, the items rated above their means, in order, and their number among the first n items."""
        found = {}
        for user, items in self.log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows():
            kept = [self.centred.get((user, i), -math.inf) > self.mean(i) for i in items]
            found[user] = ([i for i, k in zip(items, kept, strict=True) if k], [0, *np.cumsum(kept).tolist()])
        return found


class Model:
    """The SFT model of a run: hidden states [n, D] after histories, and the logits of its head."""

    def __init__(self, run: Path) -> None:
        recipe, self.data = load_recipe(run / "recipe.yaml"), read_prepared(run / "data")
        self.encoder: Any = prompt_encoder(recipe.model, self.data.catalogue)
        settings = recipe.model.loading() | {"dtype": "float32"}
        self.lm = load_weights(recipe.model.name, run / "sft" / WEIGHTS, **settings).eval()
        table = item_table(self.lm)
        assert table is not None
        self.head = Head(table).requires_grad_(False)
        self.code = self.data.catalogue.index
        self.first = len(self.lm.get_input_embeddings().weight)
        vectors = self.head.vectors - self.head.vectors.mean(dim=0)
        u, s, _ = torch.linalg.svd(vectors, full_matrices=False)
        self.vectors = (u * s)[:, :WIDTH]
        self.vectors /= self.vectors.norm(dim=1).mean()

    def states(self, histories: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return, per history, the states [n + 1, D] after its first 0 to n items; those after none are zeros.

        A state knows at least the last `LENGTH` items: longer histories are read in pieces, each of which begins with
        as many of the piece before.
        """
        pieces = []
        for row, history in enumerate(histories):
            coded = [self.code[i] for i in history]
            starts = range(0, max(1, len(coded) - LENGTH), LENGTH)
            pieces += [(row, at, coded[at : at + 2 * LENGTH]) for at in starts if coded]
        out = [torch.zeros(len(h) + 1, self.head.vectors.shape[1]) for h in histories]
        found = hidden_states(self.lm, self.encoder.begin, self.first, [piece for *_, piece in pieces])
        for (row, at, piece), states in zip(pieces, found, strict=True):
            new = LENGTH if at else 0
            out[row][at + new + 1 : at + len(piece) + 1] = states[new:]
        return out


@dataclass(frozen=True)
class Rows:
    """Rows of an alignment: states [U, D] and which of them [n], items [n, 1 + N], chosen first, and their means.

    The items of a row with fewer than N rejected ones end in −1.
    """

    states: Tensor
    which: Tensor
    items: Tensor
    means: Tensor


def alignment_rows(said: Opinions, model: Model, states: Mapping[str, Tensor], chosen: str, seed: int) -> Rows:
    """Return a row per chosen item: rejected are items that the user rated lower, all among `AHEAD` interactions.

    The history is what lies before these. `4 over 3`: chosen are ratings of at least 4, rejected of at most 3.
    `gap 1`: any rating that is lower by at least 1 is rejected.
    """
    rng, praised, places = np.random.default_rng(seed), said.praised(), {}
    which, items, means = [], [], []
    for user, own in said.log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows():
        ratings = [said.ratings.get((user, i), math.nan) for i in own]
        for place, rating in enumerate(ratings):
            end = max(min(3, place), place - int(rng.integers(AHEAD)))
            most = rating - 1 if chosen == "gap 1" else 3.0 if rating >= 4 else -math.inf
            block = [i for i, r in zip(own[end : end + AHEAD], ratings[end : end + AHEAD], strict=True) if r <= most]
            if block and end:
                listed = [own[place], *(block[n] for n in rng.permutation(len(block))[:REJECTED])]
                room = [-1] * (1 + REJECTED - len(listed))
                which.append(places.setdefault((user, praised[user][1][end]), len(places)))
                items.append([model.code[i] for i in listed] + room)
                means.append([said.mean(i, user) for i in listed] + [0.0] * len(room))
    stacked = torch.stack([states[user][count] for user, count in places])
    return Rows(stacked, torch.tensor(which), torch.tensor(items), torch.tensor(means, dtype=torch.float32))


def train(model: Model, rows: Rows, loss: str, basis: tuple[Tensor, Tensor], setting: Mapping[str, Any]) -> Tensor:
    """Return A [WIDTH, WIDTH] after training on rows by a loss of `FORMS`."""
    torch.manual_seed(0)
    weights = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=setting["rate"], weight_decay=0.0)
    short = project(rows.states, basis)
    batches = math.ceil(len(rows.which) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting["epochs"] * batches)
    for _ in range(setting["epochs"]):
        for batch in torch.randperm(len(rows.which)).split(BATCH):
            which, items = rows.which[batch], rows.items[batch]
            wanted = F.dropout(short[which], DROPOUT) @ weights
            optimizer.zero_grad()
            losses(model, loss, rows.states[which], wanted, items, OFFSET * rows.means[batch]).mean().backward()
            optimizer.step()
            schedule.step()
    return weights.detach()


def losses(model: Model, loss: str, states: Tensor, wanted: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
    """Return the losses [B] of rows after hidden states [B, D], with `wanted` [B, WIDTH] = h·A."""
    if loss == LIKED:
        return F.cross_entropy(model.head(states) + wanted @ model.vectors.T, items[:, 0], reduction="none")
    absent, items = items < 0, items.clamp(min=0)
    reference = model.head(states).gather(1, items) if loss in FREE else torch.zeros(items.shape)
    policy = reference + torch.einsum("bw,bnw->bn", wanted, model.vectors[items])
    offsets = torch.zeros_like(offsets) if loss == PLAIN else offsets
    link: Any = "pairwise" if loss in ("dpo", "bpr") else "softmax"
    margin = offsets.masked_fill(absent, -torch.inf)
    return preference_loss(policy, None if loss in FREE else reference, 1.0, margin=margin, link=link).losses


def project(states: Tensor, basis: tuple[Tensor, Tensor]) -> Tensor:
    """Return the principal parts [n, WIDTH] of states [n, D]; of a state of zeros, which has no history, zeros."""
    mean, directions = basis
    return ((states - mean) @ directions) * states.any(dim=1, keepdim=True)


def basis_of(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and principal directions [D, WIDTH] of states, scaled to a mean square length of 1."""
    mean = states.mean(dim=0)
    values, directions = torch.linalg.eigh((states - mean).T @ (states - mean) / len(states))
    return mean, directions[:, -WIDTH:] / values[-WIDTH:].sum().sqrt()


@dataclass(frozen=True)
class Fitted:
    """A log of ratings, the states of its users' praised items, and the basis that A works in."""

    said: Opinions
    states: dict[str, Tensor]
    basis: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, model: Model, log: pl.DataFrame) -> Fitted:
        """Read the histories of all users of a log."""
        said = Opinions.of(log)
        praised = said.praised()
        states = dict(zip(praised, model.states([items for items, _ in praised.values()]), strict=True))
        return cls(said, states, basis_of(torch.cat([s[1:] for s in states.values()])))

    def trained(self, model: Model, setting: Mapping[str, Any], loss: str = MAIN) -> Tensor:
        """Return A, trained on this log."""
        rows = alignment_rows(self.said, model, self.states, setting["chosen"], seed=0)
        return train(model, rows, loss, self.basis, setting)

    def reward(
        self, model: Model, weights: Tensor, states: Tensor, items: Sequence[Sequence[str]], width: int
    ) -> Floats:
        """Return log π − log π_ref [B, width] of items after states [B, D]; 0 in empty places."""
        wanted = project(states, self.basis) @ weights
        reference = model.head(states)
        change = wanted @ model.vectors.T
        reward = (
            change - (reference + change).logsumexp(dim=1, keepdim=True) + reference.logsumexp(dim=1, keepdim=True)
        )
        return padded(listed(reward, items, model.code), width)


def listed(scores: Tensor, items: Sequence[Sequence[str]], code: Mapping[str, int]) -> list[list[float]]:
    """Return the scores of listed items out of those of all items [B, I]."""
    return [row[[code[i] for i in own]].tolist() for row, own in zip(scores, items, strict=True)]


def masks(questions: Sequence[PreferenceQuestion]) -> tuple[Mask, Mask]:
    """Return which columns [B, C] are liked and which disliked."""
    signs = np.zeros((len(questions), max(len(q.liked) for q in questions)))
    for row, q in enumerate(questions):
        signs[row, : len(q.liked)] = np.where(q.liked, 1, -1)
    return signs > 0, signs < 0


def cut(log: pl.DataFrame, share: float = 0.8) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the first `share` of each user's interactions, and the others."""
    first = pl.int_range(pl.len()).over("user_id") < pl.len().over("user_id") * share
    return log.filter(first), log.filter(~first)


def choose(model: Model, thresholds: Thresholds) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the setting that adds most to the mean on the last fifth of the training part, and all trials."""
    learn, held_out = cut(model.data.train_interactions)
    fitted, judged = Fitted.of(model, learn), with_opinions(held_out, learn, thresholds)
    questions = preference_questions(learn, judged, set(learn["user_id"]), history_length=LENGTH)
    both, items = masks(questions), [q.candidates for q in questions]
    states = torch.stack([fitted.states[q.user_id][-1] for q in questions])
    mean = padded(centred_mean_scores(learn, [q.example() for q in questions]), both[0].shape[1])
    trials = []
    for values in product(*GRID.values()):
        setting = dict(zip(GRID, values, strict=True))
        reward = fitted.reward(model, fitted.trained(model, setting), states, items, both[0].shape[1])
        mixed = mixture(*(units := (scaled(mean, both), scaled(reward, both))), best_weight(*units, *both))
        auc, against = (float(within_user_auc(s, *both).mean()) for s in (mixed, mean))
        trials.append(setting | {"auc": auc, "gain": auc - against})
        say(json.dumps(trials[-1]))
    return max(trials, key=lambda t: t["gain"]), trials


def scaled(scores: Floats, both: tuple[Mask, Mask]) -> Floats:
    """Return scores [B, C] in units of their deviations within rows."""
    return scores / spread(scores, both[0] | both[1])


def padded(rows: Sequence[Sequence[float]], width: int) -> Floats:
    """Return lists of scores as an array [B, width], 0 in empty places."""
    out = np.zeros((len(rows), width))
    for row, own in zip(out, rows, strict=True):
        row[: len(own)] = own
    return out


def answers(model: Model, thresholds: Thresholds, setting: Mapping[str, Any]) -> Answers:
    """Return what the reference and the model of each loss say to the questions of validation and test users."""
    data, learn, held_out = model.data, model.data.train_interactions, model.data.held_out_interactions
    assert held_out is not None
    judged, fitted = with_opinions(held_out, learn, thresholds), Fitted.of(model, learn)
    users = {part: {e.user_id for e in data.split(part)} for part in ("validation", "test")}
    asked = {p: preference_questions(learn, judged, own, history_length=LENGTH) for p, own in users.items()}
    questions, tested = [*asked["validation"], *asked["test"]], asked["test"]
    praised = fitted.said.praised()
    both, items = masks(questions), [q.candidates for q in questions]
    examples = [replace(q.example(), history=tuple(praised[q.user_id][0])) for q in questions]
    swapped = swapped_histories(examples[-len(tested) :])
    states, others = (last_states(model, rows) for rows in (examples, swapped))
    width = both[0].shape[1]
    logps = {"sft": padded(listed(model.head(states).log_softmax(dim=1), items, model.code), width)}
    swaps = {"sft": np.zeros((len(swapped) // len(tested), len(tested), width))}
    for loss in LOSSES:
        weights = fitted.trained(model, setting, loss)
        logps[loss] = logps["sft"] + fitted.reward(model, weights, states, items, width)
        reward = fitted.reward(model, weights, others, [e.candidates for e in swapped], width)
        swaps[loss] = reward.reshape(swaps["sft"].shape)
        say(f"{loss}: trained")
    blind = {
        POPULARITY: listed(torch.tensor(popularity(learn, model.code)).expand(len(items), -1), items, model.code),
        MEAN_RATING: mean_rating_scores(learn, examples),
        CENTRED: centred_mean_scores(learn, examples),
    }
    references = {name: padded(scores, width) for name, scores in blind.items()}
    is_test = np.arange(len(questions)) >= len(questions) - len(tested)
    return Answers(logps, references, swaps, *both, items, [q.user_id for q in questions], ~is_test, is_test)


def popularity(learn: pl.DataFrame, code: Mapping[str, int]) -> list[float]:
    """Return how often each item of the catalogue is in a log."""
    counts = dict(learn.group_by("item_id").len().iter_rows())
    return [float(counts.get(item, 0)) for item in code]


def last_states(model: Model, rows: Sequence[RankingExample]) -> Tensor:
    """Return the states [n, D] after whole histories, each of which is read once."""
    histories = list(dict.fromkeys(e.history for e in rows))
    found = {h: s[-1] for h, s in zip(histories, model.states(histories), strict=True)}
    return torch.stack([found[e.history] for e in rows])


def main() -> None:
    """Choose a setting, train with each loss, ask validation and test users, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    started = time.process_time()
    with torch.no_grad():
        model = Model(args.run)
    thresholds = next(
        a for a in load_recipe(args.run / "recipe.yaml").align if a.negatives_from == "rated"
    ).thresholds
    chosen, trials = choose(model, thresholds)
    said = answers(model, thresholds, chosen)
    found = measure(said, "sft", dict.fromkeys(LOSSES, "sft"))
    users = {name: [round(float(v), 4) for v in values] for name, values in aucs(said, found).items()}
    about = {"chosen": chosen, "trials": trials, "cpu_seconds": time.process_time() - started, "per_user": users}
    args.out.write_text(json.dumps(about | found.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def aucs(said: Answers, found: Preferences) -> dict[str, Floats]:
    """Return the AUC of each test user by the mean, by the reward of `MAIN`, and by both together."""
    both, asked = (said.liked, said.disliked), said.validation
    mean, reward = said.references[CENTRED], said.logps[MAIN] - said.logps["sft"]
    units = (s / spread(s[asked], (both[0] | both[1])[asked]) for s in (mean, reward))
    mixed = mixture(*units, found.weights[f"{MAIN}: {WITH_CENTRED}"])
    scores = {CENTRED: mean, f"{MAIN}: reward": reward, f"{MAIN}: {WITH_CENTRED}": mixed}
    return {name: within_user_auc(s, *both)[said.tested] for name, s in scores.items()}


if __name__ == "__main__":
    main()
