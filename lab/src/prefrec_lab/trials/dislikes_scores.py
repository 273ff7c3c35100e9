"""What trial E6 ranks by: the aligned heads of a run, and directions that are added to the score of a base.

All scores are [B, I], for B examples and all I items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefrec.data import Query, RankingExample, seen_items
from prefrec.data.feedback import (
    Thresholds,
    centred_mean_scores,
    mean_rating_scores,
    preference_questions,
    rejected_rows,
    with_opinions,
)
from prefrec.lm.items import ItemTable, item_table
from prefrec.lm.scoring import language_model
from prefrec.losses import find_loss
from prefrec.pipeline.opened import Run
from prefrec.rankers.lm import LMRanker
from prefrec.stages.blend import sampled
from prefrec_lab.heads import Choices, Head, aligned, states

Scores = NDArray[np.float32]
Setting = Mapping[str, float]
LOSSES = {
    "s-dpo": "softmax_dpo",
    "sft-on-liked": "sft",
    "sft-on-disliked": "sft",
    "sft-weighted": "weighted_sft",
    "softmax": "softmax",
    "s-dpo-shuffled": "softmax_dpo",
}
"""Arm → its loss."""
SFT, BLEND, MEAN, ITEM_MEAN, OTHER = "sft", "blend", "mean", "item mean", "other history"
LIKED, DISLIKED = "sft-on-liked", "sft-on-disliked"
WITH_MEAN = ("s-dpo", LIKED)
"""Arms whose direction is also added to the mean."""


@dataclass(frozen=True, eq=False)
class Arms:
    """The start of a run, and what its alignments learn from.

    Attributes:
        run: with SFT and the blend.
        trial: the declaration.
        of_set: its entry of the data set.
    """

    run: Run
    trial: Mapping[str, Any]
    of_set: Mapping[str, Any]

    @cached_property
    def lm(self) -> LMRanker:
        """The model after SFT."""
        lm: Any = self.run.stage(SFT).load(self.run.recipe.evaluate.batch_size)
        return lm

    @cached_property
    def table(self) -> ItemTable:
        """Its items."""
        table = item_table(language_model(self.lm.model))
        assert table is not None
        return table

    @property
    def thresholds(self) -> Thresholds:
        """Ratings that count as liked and as disliked."""
        return Thresholds(self.of_set["liked"], self.of_set["disliked"])

    def codes(self, items: Sequence[str]) -> list[int]:
        """Return the places of items in the catalogue."""
        index = self.run.data.catalogue.index
        return [index[item] for item in items]

    def states_after(self, histories: Sequence[Sequence[str]]) -> Tensor:
        """Return the hidden states [B, D] after histories of items; equal histories are read once."""
        known = {history: n for n, history in enumerate(dict.fromkeys(map(tuple, histories)))}
        found = torch.stack([own[-1] for own in states(self.lm.model, [self._prompt(h) for h in known])])
        return found[[known[tuple(history)] for history in histories]]

    def _prompt(self, history: Sequence[str]) -> tuple[int, ...]:
        return self.lm.choices_after(history, self.run.data.catalogue.ids[:1]).prompt

    @cached_property
    def training(self) -> tuple[Tensor, dict[tuple[str, str], int]]:
        """Hidden states [N, D] in the training part, and (user, item) → place of the state after that item.

        A history of more than `history_length` items is read in pieces of twice as many, each of which begins with as
        many items of the piece before. So a state knows at least the last `history_length` items.
        """
        length, log = self.run.data.history_length, self.run.data.train_interactions
        pieces = [
            (user, items[start : start + 2 * length], length if start else 0)
            for user, items in log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows()
            for start in range(0, max(1, len(items) - length), length)
        ]
        found: list[Tensor] = []
        places: dict[tuple[str, str], int] = {}
        for (user, items, old), own in zip(
            pieces, states(self.lm.model, [self._prompt(items) for _, items, _ in pieces]), strict=True
        ):
            for item, state in zip(items[old:], own[len(own) - len(items) + old :], strict=True):
                places[user, item] = len(found)
                found.append(state)
        return torch.stack(found), places

    def liked_rows(self, *, shuffled: bool = False) -> list[RankingExample]:
        """Return the liked items of the training part, with items that the same user disliked nearby.

        `shuffled`: after each user's ratings were shuffled.
        """
        data = self.run.data
        log = data.train_interactions
        if shuffled:
            log = log.with_columns(pl.col("rating").shuffle(seed=self.run.recipe.seed).over("user_id"))
        opinions = with_opinions(log, log, self.thresholds)
        negatives, length = self.trial["negatives"], data.history_length
        return rejected_rows(
            opinions, "rated", negatives, history_length=length, min_history=3, seed=self.run.recipe.seed
        )

    def choices(self, arm: str) -> Choices:
        """Return the examples of an arm."""
        if arm == "sft-weighted":
            return self._weighted(len(self.liked_rows()))
        rows = self.liked_rows(shuffled=arm == "s-dpo-shuffled")
        hidden, places = self.training
        at = [places[e.user_id, e.history[-1]] for e in rows]
        answers = [self.codes(e.target_first) for e in rows]
        if arm == DISLIKED:  # each rejected item is the answer once; its loss does not read the second one
            flat = [(n, [item, own[0]]) for n, own in zip(at, answers, strict=True) for item in own[1:]]
            chosen = np.random.default_rng(self.run.recipe.seed).choice(len(flat), len(rows), replace=False)
            at, answers = map(list, zip(*(flat[n] for n in np.sort(chosen)), strict=True))
        width = max(map(len, answers))
        padded = torch.tensor([[*own, *[-1] * (width - len(own))] for own in answers])
        return Choices(hidden[at], padded)

    def _weighted(self, count: int) -> Choices:
        """Return random items of the training part as answers, with their ratings below the best as scores."""
        log, (hidden, places) = self.run.data.train_interactions, self.training
        users, items, ratings = (log[c].to_list() for c in ("user_id", "item_id", "rating"))
        later = [n for n in range(3, len(users)) if users[n - 3] == users[n] and ratings[n] is not None]
        some = np.random.default_rng(self.run.recipe.seed).choice(later, min(count, len(later)), replace=False)
        at = [places[users[n - 1], items[n - 1]] for n in some]
        # The second answer is another item, which the loss does not read.
        answers = torch.tensor([self.codes([items[n], items[n - 1]]) for n in some])
        scores = torch.tensor([[ratings[n] - self.of_set["liked"]] * 2 for n in some], dtype=torch.float32)
        return Choices(hidden[at], answers, scores)

    def train(self, arm: str, rate: float, epochs: Sequence[int]) -> Iterator[Head]:
        """Yield the head of an arm after each number of epochs."""
        limits = {"batch": self.trial["batch"], "max_grad_norm": self.trial["max_grad_norm"]}
        seed = self.run.recipe.seed
        loss = find_loss(LOSSES[arm])
        return aligned(self.table, self.choices(arm), loss, rate=rate, epochs=epochs, seed=seed, **limits)

    def heads(self, settings: Mapping[str, Setting]) -> dict[str, Head]:
        """Return the heads of all arms with their settings, and that of SFT."""
        found = {arm: next(self.train(arm, own["rate"], [int(own["epochs"])])) for arm, own in settings.items()}
        return {SFT: Head(self.table), **found}


@dataclass(frozen=True, eq=False)
class Asked:
    """Examples with the hidden states after their histories, and the places of their targets.

    Attributes:
        arms: of the run.
        split: of the examples.
        examples: [B] examples.
    """

    arms: Arms
    split: str
    examples: Sequence[RankingExample]

    @cached_property
    def users(self) -> list[str]:
        """User of each example [B]."""
        return [e.user_id for e in self.examples]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Places of the targets in the catalogue [B]."""
        return np.array(self.arms.codes([e.target for e in self.examples]))

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states [B, D] after the histories."""
        return self.arms.states_after([e.history for e in self.examples])

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """Mask [B, I] of the items that the user has not seen, and of the target."""
        out = np.ones((len(self.examples), len(self.arms.run.data.catalogue)), dtype=bool)
        for n, seen in enumerate(seen_items(self.arms.run.data, self.examples)):
            out[n, self.arms.codes([*seen])] = False
        out[np.arange(len(out)), self.targets] = True
        return out

    @cached_property
    def blend(self) -> Scores:
        """Scores of the blend of counts."""
        data, stage = self.arms.run.data, self.arms.run.stage(BLEND)
        rows = sampled(data, self.examples, len(data.catalogue), np.random.default_rng(0))
        ranker = stage.on(self.split).load(self.arms.run.recipe.evaluate.batch_size)
        out = np.full(self.unseen.shape, -np.inf, dtype=np.float32)
        for start in range(0, len(rows), 500):
            block = rows[start : start + 500]
            for n, (row, own) in enumerate(zip(block, ranker.score(block), strict=True), start):
                out[n, self.arms.codes(row.candidates)] = own[: len(row.candidates)]
        return out

    def base(self, name: str, heads: Mapping[str, Head]) -> Scores:
        """Return the scores of SFT or of the blend; −inf for seen items."""
        if name == BLEND:
            return np.where(self.unseen, self.blend, -np.inf)
        return np.where(self.unseen, heads[SFT].logps(self.hidden).numpy(), -np.inf)

    def reward(self, arm: str, heads: Mapping[str, Head], rows: Sequence[int] | None = None) -> Scores:
        """Return log π of an arm − log π of SFT; `rows`: after the histories of these examples in place of its own.

        For SFT on disliked items, it is log π of SFT on liked items − its log π.
        """
        hidden = self.hidden if rows is None else self.hidden[rows]
        first, second = (LIKED, arm) if arm == DISLIKED else (arm, SFT)
        return (heads[first].logps(hidden) - heads[second].logps(hidden)).numpy()

    def directions(self, heads: Mapping[str, Head], both: Mapping[str, float]) -> dict[str, Scores]:
        """Return all directions by name; `both`: arm → its weight beside the mean, per standard deviation."""
        found = {arm: self.reward(arm, heads) for arm in heads if arm != SFT}
        found[OTHER] = self.reward("s-dpo", heads, other_rows(self.users, self.arms.run.recipe.seed))
        found[MEAN], found[ITEM_MEAN] = (np.broadcast_to(own, self.unseen.shape) for own in self.means())
        for arm, weight in both.items():
            found[f"{MEAN} + {arm}"] = self.together(found[MEAN], found[arm], weight)
        return found

    def together(self, mean: Scores, reward: Scores, weight: float) -> Scores:
        """Return the sum of a mean and weight × a reward, each divided by its standard deviation."""
        return mean / self.spread(mean) + np.float32(weight) * reward / self.spread(reward)

    def means(self) -> tuple[Scores, Scores]:
        """Return the user-centred item means [I] and the item means [I] of the training part."""
        ids, log = self.arms.run.data.catalogue.ids, self.arms.run.data.train_interactions
        everything = [Query((), tuple(ids))]
        scores = centred_mean_scores(log, everything), mean_rating_scores(log, everything)
        centred, plain = (np.array(own[0], dtype=np.float32) for own in scores)
        return centred, plain

    def spread(self, scores: Scores) -> np.float32:
        """Return the standard deviation within examples over what is unseen; 1 if there is none."""
        kept = np.where(self.unseen, scores, np.float32("nan"))
        return np.float32(np.sqrt(np.nanvar(kept, axis=1).mean()) or 1.0)


def other_rows(users: Sequence[str], seed: int) -> list[int]:
    """Return, for each example [B], the place of an example of another user.

    In a random circle of users, the j-th example of a user gets the j-th one of the next user, counted again from the
    first if there are fewer.
    """
    by_user: dict[str, list[int]] = {}
    for n, user in enumerate(users):
        by_user.setdefault(user, []).append(n)
    names = np.random.default_rng((seed, 6)).permutation([*by_user]).tolist()
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    out = [0] * len(users)
    for user, own in by_user.items():
        theirs = by_user[following[user]]
        for j, n in enumerate(own):
            out[n] = theirs[j % len(theirs)]
    return out


def rated(arms: Arms, split: str) -> dict[str, Asked]:
    """Return `liked` and `disliked`: all examples of a split whose target the user rated so."""
    held_out, bounds = arms.run.data.held_out_interactions, arms.thresholds
    assert held_out is not None
    ratings = {(u, i): r for u, i, r in held_out["user_id", "item_id", "rating"].iter_rows()}
    kinds: dict[str, list[RankingExample]] = {"liked": [], "disliked": []}
    for example in arms.run.data.split(split):
        rating = ratings[example.user_id, example.target]
        if rating is not None and rating >= bounds.liked:
            kinds["liked"].append(example)
        elif rating is not None and rating <= bounds.disliked:
            kinds["disliked"].append(example)
    return {kind: Asked(arms, split, examples) for kind, examples in kinds.items()}


def questions(arms: Arms, split: str) -> tuple[Asked, NDArray[np.int64], NDArray[np.bool_]]:
    """Return a question per user with liked and disliked items, its items [Q, C] (−1: none), and which are liked."""
    data = arms.run.data
    assert data.held_out_interactions is not None
    judged = with_opinions(data.held_out_interactions, data.train_interactions, arms.thresholds)
    users = {e.user_id for e in data.split(split)}
    asked = preference_questions(data.train_interactions, judged, users, history_length=data.history_length)
    width = max(len(q.candidates) for q in asked)
    items = np.array([[*arms.codes(q.candidates), *[-1] * (width - len(q.candidates))] for q in asked])
    liked = np.array([[*q.liked, *[False] * (width - len(q.liked))] for q in asked])
    return Asked(arms, split, [q.example() for q in asked]), items, liked
