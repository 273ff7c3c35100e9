"""Train next-item models on users' sequences; validation chooses the epoch and the cell of a grid."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefrec.console import say, track
from prefrec.data import PreparedData
from prefrec.errors import ModelError
from prefrec.files import write_text, write_whole
from prefrec.lm.models import default_device
from prefrec.rankers.matrices import blocks, mean_ndcg
from prefrec_systems.sequential.batches import batches
from prefrec_systems.sequential.config import NextItemSection, SequentialConfig
from prefrec_systems.sequential.models import NextItemModel, SequentialModel
from prefrec_systems.sequential.task import Task, task_of

Config = TypeVar("Config", bound=NextItemSection)
METRIC = "ndcg@10"
"""Metric that chooses the epoch: on validation examples, ranking all items that the model knows but `Task.seen`."""
MOST_ROWS = 5_000
"""Validation examples that choose the epoch; of more, a random sample. Their ranking takes as long as an epoch."""
MODEL_FILES = ("model.safetensors", "model.json")
"""Files that `load_sequential` reads."""
CHECKPOINT, BEST = "checkpoint.pt", "best.safetensors"


def train_sequential(
    data: PreparedData, config: SequentialConfig, out: Path, *, seed: int, epochs: int | None = None
) -> Path:
    """Train a sequential recommender and return its folder.

    After each epoch the training items are ranked for validation examples, at most `MOST_ROWS` of them, as in full
    ranking; the epoch and the cell of the grid with the highest NDCG@10 are kept. Interrupted training resumes after
    the last finished epoch. On the CPU, the same data, configuration and seed give the same weights.

    Args:
        data: prepared data.
        config: settings of the model and its training.
        out: folder for `MODEL_FILES` and `log.json`.
        seed: of weights and batches.
        epochs: number of epochs, for data whose validation examples were added to training. Default: validation
            chooses.

    Raises:
        DataError: there is nothing to train on, or no validation example to choose the epoch.
        ModelError: a loss or a score is not finite.
    """
    task = task_of(data, new_items=False, is_refit=epochs is not None)
    config = for_epochs(config, epochs)
    work, log, best = out / "work", list[dict[str, Any]](), None
    for number, (cell, chosen) in enumerate(config.trials()):
        with random_state(seed):
            model = SequentialModel(chosen, task.known, task.history_length)
        training = Training(task, chosen, model, work / str(number), seed)
        training.run(config.name + "".join(f", {name} {value:g}" for name, value in cell.items()))
        log += [{"trial": number, **epoch} for epoch in training.state.log]
        if best is None or training.state.best > best.state.best:
            best = training
    assert best is not None
    best.load_best()
    weights, description = (out / name for name in MODEL_FILES)
    tensors = {name: t.cpu().contiguous() for name, t in best.model.state_dict().items()}
    write_whole(weights, lambda p: save_file(tensors, p))
    write_text(out / "log.json", json.dumps(log, ensure_ascii=False))
    about = {"config": best.config.model_dump(), **best.about(), "items": task.ids}
    write_text(description, json.dumps(about, ensure_ascii=False))
    shutil.rmtree(work)
    return out


def for_epochs(config: Config, epochs: int | None) -> Config:
    """Return the configuration for a known number of epochs; None: as it is."""
    return config if epochs is None else config.model_copy(update={"epochs": epochs, "patience": epochs})


@dataclass
class State:
    """The progress of training, kept in the checkpoint."""

    best: float = -1.0
    best_epoch: int = -1
    log: list[dict[str, float]] = field(default_factory=list)

    def is_over(self, config: NextItemSection) -> bool:
        """Return True if all epochs are done, or the last `patience` ones did not improve."""
        return len(self.log) >= config.epochs or len(self.log) - 1 - self.best_epoch >= config.patience


class Training:
    """One training, which resumes from a checkpoint in the folder `work` if there is one.

    Args:
        task: sequences and validation examples.
        config: settings of training.
        model: a `NextItemModel`.
        work: folder of the checkpoint.
        seed: of the order of sequences, and of dropout.
        groups: the optimiser's parameter groups, each with the name of its learning rate's field. Default: one group.
    """

    def __init__(
        self,
        task: Task,
        config: NextItemSection,
        model: Any,
        work: Path,
        seed: int,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.task, self.config, self.work, self.seed = task, config, work, seed
        self.rows = np.sort(np.random.default_rng(seed).permutation(len(task.targets))[:MOST_ROWS])
        self.device = default_device()
        self.model = model.to(self.device)
        groups = groups or [parameter_group("learning_rate", model, config)]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.state = State()
        work.mkdir(parents=True, exist_ok=True)
        if (work / CHECKPOINT).is_file():
            saved = torch.load(work / CHECKPOINT, weights_only=True, map_location=self.device)
            self.model.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = State(**saved["state"])

    def run(self, name: str) -> None:
        """Train to the end."""
        epochs = 0 if self.state.is_over(self.config) else self.config.epochs - len(self.state.log)
        for _ in track(self._steps(name), name, total=epochs * len(self._batches(0))):
            pass
        state = self.state
        if not len(self.task.targets):
            say(f"{name}: {len(state.log)} epochs, as many as validation chose")
            return
        say(f"{name}: validation {METRIC.upper()} {state.best:.4f} at epoch {state.best_epoch + 1}")

    def load_best(self) -> None:
        """Load the weights of the best epoch into the model."""
        self.model.load_state_dict(load_file(self.work / BEST))
        self.model.eval()

    def about(self) -> dict[str, Any]:
        """Return the part of the model's description that is about training."""
        return {
            "history_length": self.task.history_length,
            "best": self.state.best,
            "best_epoch": self.state.best_epoch,
        }

    def _steps(self, name: str) -> Iterator[None]:
        while not self.state.is_over(self.config):
            epoch, losses = len(self.state.log), []
            with random_state(self.seed, epoch):
                self.model.train()
                for batch in self._batches(epoch):
                    self.optimizer.zero_grad()
                    loss = self.model.loss(batch.to(self.device))
                    losses.append(loss.item())
                    self._check(name, math.isfinite(losses[-1]))
                    loss.backward()
                    self.optimizer.step()
                    yield
            self._end_epoch(name, float(np.mean(losses)))

    def _batches(self, epoch: int) -> list[Any]:
        return batches(self.task.sequences, self.task.history_length, self.config.batch_size, (self.seed, epoch))

    def _end_epoch(self, name: str, loss: float) -> None:
        """Validate, and write the checkpoint and the best weights: without validation examples, the latest."""
        epoch, is_best = len(self.state.log), True
        line = {"epoch": epoch, "loss": loss}
        if len(self.task.targets):
            line[METRIC] = self._validated(name)
            is_best = line[METRIC] > self.state.best
        self.state.log.append(line)
        weights = self.model.state_dict()
        if is_best:
            self.state.best, self.state.best_epoch = line.get(METRIC, self.state.best), epoch
            best = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
            write_whole(self.work / BEST, lambda p: save_file(best, p))
        checkpoint = {"weights": weights, "optimizer": self.optimizer.state_dict(), "state": vars(self.state)}
        write_whole(self.work / CHECKPOINT, lambda p: torch.save(checkpoint, p))

    def _validated(self, name: str) -> float:
        """Return NDCG@10 of the validation examples in the sample."""
        self.model.eval()
        with torch.inference_mode():
            items = self.model.all_items().to(self.device)
        total = 0.0
        for block in blocks(len(self.rows), len(items)):
            rows = self.rows[block]
            histories = self.task.histories[rows]
            scores = last_scores(self.model, items, histories, (histories >= 0).sum(axis=1))
            self._check(name, bool(np.isfinite(scores).all()))
            for row, own in zip(rows, scores, strict=True):
                own[self.task.seen[row]] = -np.inf
            total += len(rows) * mean_ndcg(scores, self.task.targets[rows])
        return total / len(self.rows)

    def _check(self, name: str, finite: bool) -> None:
        """Raise ModelError if training has diverged; the checkpoint of the last good epoch stays."""
        if not finite:
            rates = [(group["name"], group["lr"]) for group in self.optimizer.param_groups]
            raise ModelError(
                f"{name}: training diverged in epoch {len(self.state.log) + 1} (a loss or a score is not finite): "
                f"lower {' and '.join(f'{rate} ({value:g})' for rate, value in rates)}"
            )


def parameter_group(name: str, module: torch.nn.Module, config: NextItemSection) -> dict[str, Any]:
    """Return a parameter group of a module, with the learning rate in the field `name`."""
    return {"params": list(module.parameters()), "lr": getattr(config, name), "name": name}


@contextmanager
def random_state(*key: int) -> Iterator[None]:
    """Seed torch with the key inside the context, and restore its random state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


@torch.inference_mode()
def last_scores(
    model: NextItemModel, items: Tensor, codes: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return scores [B, I] of all items after the last item of each history.

    Args:
        model: a model in evaluation mode.
        items: [I, d] item vectors by code.
        codes: [B, L] histories as item codes, oldest first; -1 in empty columns at the end.
        lengths: [B] lengths of the histories; an empty history gives zeros.
    """
    if not codes.shape[1]:
        return np.zeros((len(codes), len(items)))
    histories = items[torch.from_numpy(codes.clip(min=0)).to(items.device)]
    last = torch.from_numpy(lengths.clip(min=1) - 1).to(items.device)
    states = model.states(histories)[torch.arange(len(codes), device=items.device), last]
    scores = (states @ items.T).double().cpu().numpy()
    return np.where(lengths[:, None] > 0, scores, 0.0)
