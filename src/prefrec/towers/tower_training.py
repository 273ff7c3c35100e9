"""Train a title tower: all items of training sequences but the first are targets; validation chooses the epoch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from prefrec.console import say, track
from prefrec.data import Candidates, PreparedData, Queries, RankingExample, seen_items
from prefrec.errors import DataError, ModelError
from prefrec.files import write_text, write_whole
from prefrec.rankers.matrices import blocks, mean_ndcg
from prefrec.towers.network import AdamW, Dropped, Floats, Indices, TitleTower
from prefrec.towers.title_tower import (
    TitleTowerConfig,
    TitleTowerRanker,
    as_ranker,
    save_tower,
    whitened,
)

ROWS = 2000
"""Most validation examples that choose the epoch."""
RUN = 8
"""Most consecutive targets of a user that are in a batch together."""
CHECKPOINT = "checkpoint.safetensors"


def train_tower(
    data: PreparedData,
    titles: Floats,
    config: TitleTowerConfig,
    out: Path,
    *,
    seed: int,
    epochs: int | None = None,
) -> Path:
    """Train a title tower and return its folder.

    After each epoch, all items that a validation user has not seen are ranked; the epoch with the highest NDCG@10 is
    kept. Interrupted training resumes after the last finished epoch. The same data, vectors, configuration
    and seed give the same weights, up to rounding of the processor.

    Args:
        data: prepared data.
        titles: [I, T] title vectors of the catalogue's items.
        config: settings of the model and its training.
        out: folder for `TOWER_FILES` and `log.json`.
        seed: of the order of targets, and of dropout.
        epochs: number of epochs, for data whose validation examples were added to training. Default: validation
            chooses.

    Raises:
        DataError: there is nothing to train on, or no validation example to choose the epoch.
        ModelError: a loss is not finite.
    """
    rows = data.examples("validation", ROWS) if epochs is None else []
    if epochs is None and not rows:
        raise DataError(f"{config.name}: there are no validation examples, which choose the epoch")
    training = _Training(data, titles, config, rows, out / "work", seed)
    progress = training.run(config.epochs if epochs is None else epochs)
    about = {"config": config.model_dump(), "best": progress.best, "best_epoch": progress.best_epoch}
    save_tower(training.ranker(progress.weights), about, out)
    write_text(out / "log.json", json.dumps(progress.log))
    shutil.rmtree(out / "work")
    return out


@dataclass(eq=False)
class Progress:
    """The progress of a training, kept in its checkpoint.

    Attributes:
        log: numbers of each epoch.
        best: highest NDCG@10 on validation examples; NaN without them.
        best_epoch: its epoch, from 0; without validation examples, the last one.
        weights: of the best epoch.
    """

    log: list[dict[str, float]] = field(default_factory=list)
    best: float = math.nan
    best_epoch: int = -1
    weights: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a log, as positions in the sequences of all users.

    Attributes:
        codes: [N] item codes of all interactions, by user and time.
        starts: [N] position of the first interaction of the same user.
        positions: [P] positions of the targets: all but each user's first interaction.
    """

    codes: Indices
    starts: Indices
    positions: Indices

    @classmethod
    def of(cls, data: PreparedData, index: dict[str, int]) -> Targets:
        """Return the targets of the training interactions; raise DataError if there are none."""
        log = data.train_interactions
        codes = np.array([index[item] for item in log["item_id"].to_list()], dtype=np.int64)
        lengths = log["user_id"].rle().struct.field("len").to_numpy().astype(np.int64)
        starts = np.repeat(lengths.cumsum() - lengths, lengths)
        at = np.arange(len(codes))
        if not (at > starts).any():
            raise DataError("no user has two training interactions: there is no next item to learn from")
        return cls(codes, starts, at[at > starts])

    def shuffled(self, rng: np.random.Generator) -> Indices:
        """Return the order [P] of the targets in an epoch: at random, but up to `RUN` targets of a user together.

        Histories of consecutive targets share their items, so that a batch needs far fewer softmaxes.
        """
        begins = (self.positions - self.starts[self.positions] - 1) % RUN == 0
        first = np.flatnonzero(begins)
        counts = np.diff(np.r_[first, len(begins)])
        runs = rng.permutation(len(first))
        ends = np.cumsum(counts[runs])
        return np.arange(len(begins)) + np.repeat(first[runs] - (ends - counts[runs]), counts[runs])

    def histories(self, positions: Indices, last: int) -> Indices:
        """Return the item codes [B, last] before positions [B], newest first; −1 in empty columns."""
        before = positions[:, None] - 1 - np.arange(last)
        return np.where(before >= self.starts[positions][:, None], self.codes[np.maximum(before, 0)], -1)


class _Training:
    """One training, which resumes from the checkpoint in the folder `work` if there is one."""

    def __init__(
        self,
        data: PreparedData,
        titles: Floats,
        config: TitleTowerConfig,
        rows: list[RankingExample],
        work: Path,
        seed: int,
    ) -> None:
        self.config, self.work, self.seed = config, work, seed
        self.ids, index = data.catalogue.ids, data.catalogue.index
        learnt = set(data.train_interactions["item_id"])
        self.learnt = np.array([index[item] for item in self.ids if item in learnt], dtype=np.int64)
        code = {self.ids[i]: n for n, i in enumerate(self.learnt.tolist())}
        self.targets = Targets.of(data, code)
        self.rows, self.seen = rows, seen_items(data, rows)
        self.titles = whitened(titles, config.width)
        self.tower = TitleTower(self.titles[self.learnt], config.width, config.last)
        self.optimizer = AdamW(self.tower.weights, config.weight_decay)
        self.progress = Progress()
        if (work / CHECKPOINT).is_file():
            self._resume()

    def run(self, epochs: int) -> Progress:
        """Train to the end: `epochs` epochs, or until validation does not improve."""
        progress, name = self.progress, self.config.name
        steps = math.ceil(len(self.targets.positions) / self.config.batch_size)
        for _ in track(self._steps(epochs), name, total=(epochs - len(progress.log)) * steps):
            pass
        count = f"{progress.best_epoch + 1} epoch{'s' if progress.best_epoch else ''}"
        reached = f"validation NDCG@10 {progress.best:.4f} after {count}"
        say(f"{name}: {reached if self.rows else f'{count}, as validation chose'}")
        return progress

    def ranker(self, weights: dict[str, Floats] | None = None) -> TitleTowerRanker:
        """Return the tower as a ranker, with these weights or its present ones."""
        if weights:
            self.tower.weights.update(weights)
        return as_ranker(self.tower, self.config.name, self.ids, self.titles, self.learnt)

    def _steps(self, epochs: int) -> Iterator[None]:
        log, progress = self.progress.log, self.progress
        while len(log) < epochs and not (self.rows and len(log) - 1 - progress.best_epoch >= self.config.patience):
            losses, rng = list[float](), np.random.default_rng([self.seed, len(log)])
            order, size = self.targets.shuffled(rng), self.config.batch_size
            starts = range(0, len(order), size)
            for number, start in enumerate(starts):
                done = (len(log) + number / len(starts)) / self.config.epochs
                losses.append(self._step(order[start : start + size], 1 - done, rng))
                yield
            self._end_epoch(float(np.mean(losses)))

    def _step(self, chosen: Indices, rate: float, rng: np.random.Generator) -> float:
        """Take a step for some targets; return the loss, −log softmax over all learnt items.

        `rate` is relative to the initial learning rate. `rng` draws what is dropped.
        """
        config, positions = self.config, self.targets.positions[chosen]
        histories = self.targets.histories(positions, config.last)
        dropped = Dropped.draw(rng, len(self.learnt), config.width, config.vector_dropout, config.dropout)
        loss, gradients = self.tower.loss(histories, self.targets.codes[positions], dropped)
        if not math.isfinite(loss):
            raise ModelError(
                f"{config.name}: training diverged in epoch {len(self.progress.log) + 1} (the loss is not finite): "
                f"lower learning_rate ({config.learning_rate:g})"
            )
        self.optimizer.step(gradients, rate * config.learning_rate)
        return loss

    def _end_epoch(self, loss: float) -> None:
        """Validate, and write the checkpoint with the best weights: without validation examples, the latest."""
        progress, line = self.progress, {"epoch": len(self.progress.log), "loss": loss}
        reached = math.nan
        if self.rows:
            reached = line["ndcg@10"] = self._ndcg()
        if not self.rows or progress.best_epoch < 0 or reached > progress.best:
            progress.best, progress.best_epoch = reached, len(progress.log)
            progress.weights = {name: weight.copy() for name, weight in self.tower.weights.items()}
        progress.log.append(line)
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """Write the weights, those of the best epoch, the state of the optimiser, and the progress."""
        progress, states = self.progress, dict[str, Floats]()
        for name, weight in self.tower.weights.items():
            first, second = self.optimizer.moments[name]
            states |= {name: weight, f"best.{name}": progress.weights[name]}
            states |= {f"first.{name}": first, f"second.{name}": second}
        numbers = {"log": progress.log, "best": progress.best, "best_epoch": progress.best_epoch}
        about = {"progress": json.dumps(numbers), "steps": str(self.optimizer.steps)}
        self.work.mkdir(parents=True, exist_ok=True)
        write_whole(self.work / CHECKPOINT, lambda p: save_file(states, p, metadata=about))

    def _resume(self) -> None:
        """Read what `_write_checkpoint` wrote."""
        with safe_open(self.work / CHECKPOINT, framework="np") as saved:
            about = saved.metadata()
            state = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118  # it is not a dict
        weights, moments = self.tower.weights, self.optimizer.moments
        best = {name: state[f"best.{name}"] for name in weights}
        for name in weights:
            weights[name][...] = state[name]
            moments[name] = (state[f"first.{name}"], state[f"second.{name}"])
        self.optimizer.steps = int(about["steps"])
        self.progress = Progress(**json.loads(about["progress"]), weights=best)

    def _ndcg(self) -> float:
        """Return NDCG@10 of the validation examples, among all items that their users have not seen."""
        ranker, catalogue, total = self.ranker(), Candidates(self.ids), 0.0
        for block in blocks(len(self.rows), len(catalogue)):
            rows = self.rows[block]
            scores = ranker.score(Queries([e.among(catalogue.ids) for e in rows], catalogue))
            for row, e, seen in zip(scores, rows, self.seen[block], strict=True):
                row[[ranker.index[item] for item in seen - {e.target} if item in ranker.index]] = -np.inf
            total += len(rows) * mean_ndcg(scores, [ranker.index[e.target] for e in rows])
        return total / len(self.rows)
