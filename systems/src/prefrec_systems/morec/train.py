"""Training of MoRec on the next items of users' sequences; validation chooses the epoch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefrec.console import say, track
from prefrec.data import PreparedData
from prefrec.errors import ConfigError, DataError
from prefrec.files import write_text, write_whole
from prefrec.lm.models import default_device
from prefrec.rankers.rows import pad_codes
from prefrec.rankers.title_encoder import TitleEncoder, load_encoder
from prefrec_systems.morec.batches import Batch, batches
from prefrec_systems.morec.config import MoRecConfig
from prefrec_systems.morec.loss import distinct_codes, full_softmax_loss, in_batch_softmax_loss
from prefrec_systems.morec.model import MoRecModel
from prefrec_systems.morec.ranker import ENCODER, MODEL_FILES, SIZES, last_scores
from prefrec_systems.morec.titles import read_titles, title_vectors, write_titles

METRIC = "ndcg@10"
"""Of the validation rows, over the whole catalogue; it chooses the epoch."""
CHECKPOINT = "checkpoint.pt"


def train_morec(data: PreparedData, config: MoRecConfig, out: Path, *, seed: int) -> Path:
    """Train MoRec in `out`, which then holds `MODEL_FILES`, `log.json` and a tuned encoder; return `out`.

    After each epoch the whole catalogue, with the items that training lacks, is ranked for every validation row.
    The epoch with the highest NDCG@10 is kept. An interrupted training continues after its last epoch. On the CPU
    the same data, configuration and seed give the same weights.

    Raises:
        ModelError: the encoder does not exist.
        DataError: there is nothing to train on, or no validation row to choose the epoch by.
        ConfigError: a loss or a score is not finite.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    training = _Training(_Task.from_data(data), config, work, seed)
    for _ in track(training.steps(), config.name, total=training.most_steps()):
        pass
    training.keep_best(out)
    (work / CHECKPOINT).unlink()
    shutil.rmtree(work)
    return out


@dataclass(frozen=True)
class _Task:
    """The sequences to learn: training items have the codes 0 … n − 1, the catalogue's other items follow."""

    titles: list[str]  # [I] by code
    known: int  # n, the number of training items
    sequences: list[list[int]]  # codes of each training user's items, oldest first
    histories: NDArray[np.int64]  # [B, L] codes of the validation rows' histories, -1 in empty places
    targets: NDArray[np.int64]  # [B] codes
    history_length: int  # L

    @classmethod
    def from_data(cls, data: PreparedData) -> _Task:
        by_user = data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
        taken = set(data.train_interactions["item_id"])
        known = [i for i in data.catalogue.ids if i in taken]
        ids = [*known, *(i for i in data.catalogue.ids if i not in taken)]
        code = {item: n for n, item in enumerate(ids)}
        length = max((len(e.history) for e in (*data.validation, *data.test)), default=0)
        rows = [e for e in data.validation if e.history]
        sequences = [[code[i] for i in items] for items in by_user.to_list()]
        if not any(len(s) > 1 for s in sequences):
            raise DataError("no user has two training interactions: there is no next item to learn from")
        if not rows:
            raise DataError(
                "no validation row has a history: there is nothing to choose the epoch by; prepare validation rows"
            )
        histories = pad_codes([e.history for e in rows], code)
        targets = np.array([code[e.target] for e in rows])
        return cls(data.catalogue.titles_of(ids), len(known), sequences, histories, targets, length)

    def shares(self) -> Tensor:
        """Return the share [n] of each training item in all training interactions, by code."""
        counts = np.bincount([c for s in self.sequences for c in s], minlength=self.known)
        return torch.from_numpy(counts / counts.sum()).float()


@dataclass
class _State:
    """The progress of a training, as its checkpoint keeps it."""

    best: float = -1.0
    best_epoch: int = -1
    log: list[dict[str, float]] = field(default_factory=list)

    def is_over(self, config: MoRecConfig) -> bool:
        return len(self.log) >= config.epochs or len(self.log) - 1 - self.best_epoch >= config.patience


class _Training:
    """One training, continued from the checkpoint in `work` if there is one."""

    def __init__(self, task: _Task, config: MoRecConfig, work: Path, seed: int) -> None:
        self.task, self.config, self.work, self.seed = task, config, work, seed
        self.device = default_device()
        self.encoder: TitleEncoder | None = None
        vectors = self._first_vectors()
        sizes = {name: getattr(config, name) for name in SIZES}
        with self._random():
            self.model = MoRecModel(vectors.shape[1], task.history_length, **sizes)
        self.model.standardise_by(vectors[: task.known])
        self.model.to(self.device)
        self.vectors = vectors.to(self.device)
        self.shares = task.shares().to(self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay)
        self.state = self._resume(work / CHECKPOINT)

    def most_steps(self) -> int:
        """Return the number of steps to come if training does not end early."""
        epochs = 0 if self.state.is_over(self.config) else self.config.epochs - len(self.state.log)
        return epochs * len(self._batches(0))

    def steps(self) -> Iterator[None]:
        """Train to the end, step by step."""
        while not self.state.is_over(self.config):
            epoch = len(self.state.log)
            losses = []
            with self._random(epoch):
                self._train_mode(True)
                for batch in self._batches(epoch):
                    losses.append(self._step(batch.to(self.device)))
                    yield
            self._end_epoch(epoch, float(np.mean(losses)))

    def keep_best(self, out: Path) -> None:
        """Write the weights of the best epoch, the title vectors and what is needed to read them."""
        weights = load_file(self.work / "best.safetensors")
        own = {name.removeprefix("model."): t for name, t in weights.items() if name.startswith("model.")}
        if self.encoder is not None:
            tuned = {n.removeprefix("encoder."): t for n, t in weights.items() if n.startswith("encoder.")}
            self.encoder.model.load_state_dict(tuned)
            self.encoder.model.save_pretrained(out / ENCODER)
            self.encoder.tokenizer.save_pretrained(out / ENCODER)
            self.vectors = self.encoder.encode(self.task.titles)
        description = {
            "config": self.config.model_dump(),
            "width": self.vectors.shape[1],
            "history_length": self.task.history_length,
            "best": self.state.best,
            "best_epoch": self.state.best_epoch,
        }
        weights_file, titles_file, description_file = (out / name for name in MODEL_FILES)
        write_whole(weights_file, lambda p: save_file(own, p))
        write_titles(self.task.titles, self.vectors.cpu(), titles_file)
        write_text(out / "log.json", json.dumps(self.state.log, ensure_ascii=False))
        write_text(description_file, json.dumps(description, ensure_ascii=False))
        say(
            f"{self.config.name}: validation {METRIC.upper()} {self.state.best:.4f} "
            f"at epoch {self.state.best_epoch + 1}"
        )

    def _first_vectors(self) -> Tensor:
        """Return the title vectors [I, H] of the untrained encoder; a file keeps them for the next start."""
        path = self.work / "titles.safetensors"
        if self.config.tune:
            self.encoder = load_encoder(self.config.encoder, self.config.max_title_tokens)
        known = read_titles(path) if path.is_file() else {}

        def encoder() -> TitleEncoder:
            return self.encoder or load_encoder(self.config.encoder, self.config.max_title_tokens)

        vectors = title_vectors(self.task.titles, known, encoder)
        write_titles(self.task.titles, vectors, path)
        return vectors

    def _groups(self) -> list[dict[str, Any]]:
        groups = [{"params": list(self.model.parameters()), "lr": self.config.learning_rate}]
        if self.encoder is not None:
            groups.append({"params": list(self.encoder.parameters()), "lr": self.config.encoder_learning_rate})
        return groups

    @contextmanager
    def _random(self, *key: int) -> Iterator[None]:
        """Make draws inside depend on the seed and `key` alone, and leave those outside undisturbed."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, *key)).generate_state(1)[0]))
            yield

    def _train_mode(self, on: bool) -> None:
        self.model.train(on)
        if self.encoder is not None:
            self.encoder.train(on)

    def _batches(self, epoch: int) -> list[Batch]:
        return batches(self.task.sequences, self.task.history_length, self.config.batch_size, (self.seed, epoch))

    def _step(self, batch: Batch) -> float:
        self.optimizer.zero_grad()
        loss = self._loss(batch)
        value = loss.item()
        self._check(math.isfinite(value))
        loss.backward()
        self.optimizer.step()
        return value

    def _loss(self, batch: Batch) -> Tensor:
        if not self.config.in_batch:
            codes = torch.arange(self.task.known, device=self.device)
            return full_softmax_loss(self.model, self._items(codes), batch)
        codes = distinct_codes(batch)
        return in_batch_softmax_loss(self.model, self._items(codes), codes, batch, self.shares)

    def _items(self, codes: Tensor) -> Tensor:
        """Return item vectors [D, d] of codes [D], through the encoder if it is trained."""
        if self.encoder is None:
            return self.model.items(self.vectors[codes])
        return self.model.items(self.encoder([self.task.titles[c] for c in codes.tolist()]))

    def _end_epoch(self, epoch: int, loss: float) -> None:
        """Measure, and write what the next epoch and the best one need."""
        score = self._validate()
        self.state.log.append({"epoch": epoch, "loss": loss, METRIC: score})
        if score > self.state.best:
            self.state.best, self.state.best_epoch = score, epoch
            weights = {name: t.detach().cpu().contiguous() for name, t in self._weights().items()}
            write_whole(self.work / "best.safetensors", lambda p: save_file(weights, p))
        checkpoint = {"weights": self._weights(), "optimizer": self.optimizer.state_dict(), "state": vars(self.state)}
        write_whole(self.work / CHECKPOINT, lambda p: torch.save(checkpoint, p))

    def _validate(self) -> float:
        self._train_mode(False)
        vectors = self.vectors if self.encoder is None else self.encoder.encode(self.task.titles, progress=False)
        with torch.inference_mode():
            items = self.model.items(vectors.to(self.device))
        lengths = (self.task.histories >= 0).sum(axis=1)
        scores = last_scores(self.model, items, self.task.histories, lengths)
        self._check(bool(np.isfinite(scores).all()))
        return mean_ndcg(scores, self.task.targets)

    def _check(self, finite: bool) -> None:
        """Stop a training that has diverged; the folder keeps the state after the last good epoch."""
        if finite:
            return
        config = self.config
        rates = {"learning_rate": config.learning_rate}
        rates |= {"encoder_learning_rate": config.encoder_learning_rate} if config.tune else {}
        raise ConfigError(
            f"{config.name}: training diverged in epoch {len(self.state.log) + 1}, a loss or a score is not "
            f"finite; lower {' and '.join(f'{name} ({rate:g})' for name, rate in rates.items())}"
        )

    def _weights(self) -> dict[str, Tensor]:
        weights = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.encoder is not None:
            weights |= {f"encoder.{name}": t for name, t in self.encoder.model.state_dict().items()}
        return weights

    def _resume(self, checkpoint: Path) -> _State:
        if not checkpoint.is_file():
            return _State()
        saved = torch.load(checkpoint, weights_only=True, map_location=self.device)
        weights = saved["weights"]
        self.model.load_state_dict({n: weights[f"model.{n}"] for n in self.model.state_dict()})
        if self.encoder is not None:
            self.encoder.model.load_state_dict({n: weights[f"encoder.{n}"] for n in self.encoder.model.state_dict()})
        self.optimizer.load_state_dict(saved["optimizer"])
        return _State(**saved["state"])


def mean_ndcg(scores: NDArray[np.float64], targets: NDArray[np.int64], k: int = 10) -> float:
    """Return the mean NDCG@k of scores [B, I] with targets [B]; an item that ties with the target ranks above it."""
    own = scores[np.arange(len(scores)), targets][:, None]
    ranks = (scores >= own).sum(axis=1)
    return float(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0).mean())
