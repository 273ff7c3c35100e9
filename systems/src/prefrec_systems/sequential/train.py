"""Training on the next items of users' sequences; validation chooses the epoch and the cell of a grid."""

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
from prefrec.errors import ConfigError
from prefrec.files import write_text, write_whole
from prefrec.lm.models import default_device
from prefrec_systems.sequential.batches import batches
from prefrec_systems.sequential.config import NextItemSection, SequentialConfig
from prefrec_systems.sequential.models import NextItemModel, SequentialModel
from prefrec_systems.sequential.task import Task, task_of

METRIC = "ndcg@10"
"""Of the validation rows, over all items that the model knows; it chooses the epoch."""
MODEL_FILES = ("model.safetensors", "model.json")
"""The files that `load_sequential` reads."""
CHECKPOINT, BEST = "checkpoint.pt", "best.safetensors"


def train_sequential(data: PreparedData, config: SequentialConfig, out: Path, *, seed: int) -> Path:
    """Train in `out`, which then holds `MODEL_FILES` and `log.json`; return `out`.

    After each epoch all training items are ranked for every validation row. The epoch and the cell of the grid with
    the highest NDCG@10 are kept. An interrupted training continues after its last epoch. On the CPU the same data,
    configuration and seed give the same weights.

    Raises:
        DataError: there is nothing to train on, or no validation row to choose the epoch by.
        ConfigError: a loss or a score is not finite.
    """
    task, work, log, best = task_of(data, new_items=False), out / "work", list[dict[str, Any]](), None
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


@dataclass
class State:
    """The progress of a training, as its checkpoint keeps it."""

    best: float = -1.0
    best_epoch: int = -1
    log: list[dict[str, float]] = field(default_factory=list)

    def is_over(self, config: NextItemSection) -> bool:
        """Return True if no epoch is left, or the last ones were no better."""
        return len(self.log) >= config.epochs or len(self.log) - 1 - self.best_epoch >= config.patience


class Training:
    """One training, continued from the checkpoint in the folder `work` if there is one.

    Args:
        model: a `NextItemModel`.
        seed: of the order of the sequences, and of dropout.
        groups: the optimiser's parameter groups, each named by its rate's field; default: one of all parameters.
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
        say(f"{name}: validation {METRIC.upper()} {state.best:.4f} at epoch {state.best_epoch + 1}")

    def load_best(self) -> None:
        """Give the model the weights of the best epoch."""
        self.model.load_state_dict(load_file(self.work / BEST))
        self.model.eval()

    def about(self) -> dict[str, Any]:
        """Return what a description of the model says of its training."""
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
        """Measure, and write what the next epoch and the best one need."""
        self.model.eval()
        with torch.inference_mode():
            items = self.model.all_items().to(self.device)
        scores = last_scores(self.model, items, self.task.histories, (self.task.histories >= 0).sum(axis=1))
        self._check(name, bool(np.isfinite(scores).all()))
        score, epoch = mean_ndcg(scores, self.task.targets), len(self.state.log)
        self.state.log.append({"epoch": epoch, "loss": loss, METRIC: score})
        weights = self.model.state_dict()
        if score > self.state.best:
            self.state.best, self.state.best_epoch = score, epoch
            best = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
            write_whole(self.work / BEST, lambda p: save_file(best, p))
        checkpoint = {"weights": weights, "optimizer": self.optimizer.state_dict(), "state": vars(self.state)}
        write_whole(self.work / CHECKPOINT, lambda p: torch.save(checkpoint, p))

    def _check(self, name: str, finite: bool) -> None:
        """Stop a training that has diverged; the folder keeps the state after the last good epoch."""
        if not finite:
            rates = [(group["name"], group["lr"]) for group in self.optimizer.param_groups]
            raise ConfigError(
                f"{name}: training diverged in epoch {len(self.state.log) + 1}, a loss or a score is not finite; "
                f"lower {' and '.join(f'{rate} ({value:g})' for rate, value in rates)}"
            )


def parameter_group(name: str, module: torch.nn.Module, config: NextItemSection) -> dict[str, Any]:
    """Return an optimiser's group of a module's parameters, at the rate in the field of this name."""
    return {"params": list(module.parameters()), "lr": getattr(config, name), "name": name}


@contextmanager
def random_state(*key: int) -> Iterator[None]:
    """Make draws inside depend on the key alone, and leave those outside undisturbed."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


@torch.inference_mode()
def last_scores(
    model: NextItemModel, items: Tensor, codes: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return scores [B, I] of all items after the last item of each history.

    Args:
        model: in evaluation mode.
        items: item vectors [I, d].
        codes: histories [B, L], oldest first, as rows of `items`; -1 in empty places at the end.
        lengths: [B] of the histories; 0 gives a row of zeros.
    """
    if not codes.shape[1]:
        return np.zeros((len(codes), len(items)))
    histories = items[torch.from_numpy(codes.clip(min=0)).to(items.device)]
    last = torch.from_numpy(lengths.clip(min=1) - 1).to(items.device)
    states = model.states(histories)[torch.arange(len(codes), device=items.device), last]
    scores = (states @ items.T).double().cpu().numpy()
    return np.where(lengths[:, None] > 0, scores, 0.0)


def mean_ndcg(scores: NDArray[np.float64], targets: NDArray[np.int64], k: int = 10) -> float:
    """Return the mean NDCG@k of scores [B, I] with targets [B]; an item that ties with the target ranks above it."""
    own = scores[np.arange(len(scores)), targets][:, None]
    ranks = (scores >= own).sum(axis=1)
    return float(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0).mean())
