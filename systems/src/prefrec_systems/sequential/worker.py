"""The process that hopwise trains in: `python -m prefrec_systems.sequential.worker JOB.json`.

hopwise reads `sys.argv`, patches numpy and writes TensorBoard files into the working directory. None of this belongs
in the caller's process. This one reads its task from a file (`Job`), writes weights as safetensors and answers on
standard output, one JSON object per line:

    {"trial": 0, "epoch": 3, "ndcg@10": 0.071}      an epoch is over
    {"trial": 0, "best": 0.074, "best_epoch": 2}    a training is over
    {"missing": "colorlog"}                         hopwise lacks a module; the exit code is 3

Everything else that is printed goes to standard error. A training that was killed continues after its last epoch, to
the same result as without the interruption.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefrec.files import write_whole
from prefrec_systems.sequential.benchmark import DATASET, PARTS
from prefrec_systems.sequential.config import FIXED, METRIC, MISSING, Job

Report = Callable[[dict[str, Any]], None]


def hopwise_settings(job: Job, trial: tuple[float, float]) -> dict[str, Any]:
    """Return hopwise's configuration of one training; all other settings are hopwise's defaults."""
    return {
        **FIXED,
        **job["settings"],
        "data_path": job["benchmark"],
        "checkpoint_dir": job["benchmark"],
        "benchmark_filename": list(PARTS),
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": job["history_length"],
        "train_neg_sample_args": None,
        "epochs": job["epochs"],
        "stopping_step": job["patience"] - 1,
        "train_batch_size": job["batch_size"],
        "eval_batch_size": 512,
        "learning_rate": trial[0],
        "weight_decay": trial[1],
        "seed": job["seed"],
        "reproducibility": True,
        "metrics": ["Hit", "NDCG"],
        "topk": [1, 5, 10],
        "valid_metric": METRIC.upper(),
        "metric_decimal_place": 12,
        "gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        "show_progress": False,
        "log_wandb": False,
    }


class Training:
    """One training by hopwise: its data, its model and its trainer."""

    def __init__(self, job: Job, trial: tuple[float, float]) -> None:
        from hopwise.config import Config
        from hopwise.data import create_dataset, data_preparation
        from hopwise.utils import get_model, get_trainer, init_seed

        self.config = Config(model=job["model"], dataset=DATASET, config_dict=hopwise_settings(job, trial))
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.dataset = create_dataset(self.config)
        self.train, self.valid, self.test = data_preparation(self.config, self.dataset)
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model = get_model(job["model"])(self.config, self.train.dataset).to(self.config["device"])
        self.trainer = get_trainer(self.config["MODEL_TYPE"], job["model"])(self.config, self.model)
        torch.autograd.set_detect_anomaly(False)  # one of hopwise's modules switches it on, for all models
        self._forget_unknown_users()

    def _forget_unknown_users(self) -> None:
        """Give users without training rows the zero vector, which training leaves as it is."""
        token = self.dataset.field2token_id["user_id"].get("0")
        if token is not None and hasattr(self.model, "user_embedding"):
            with torch.no_grad():
                self.model.user_embedding.weight[token] = 0

    def run(self, folder: Path, report: Report) -> dict[str, Any]:
        """Train to the end; `best.safetensors` in `folder` holds the weights of the best epoch."""
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "checkpoint.pt"
        state = self._resume(checkpoint)

        def keep(epoch: int, score: float) -> None:
            loss = self.trainer.train_loss_dict[epoch] / len(self.train)
            state["log"].append({"epoch": epoch, "loss": float(loss), METRIC: float(score)})
            if self.trainer.cur_step == 0:
                state["best"], state["best_epoch"] = float(score), epoch
                weights = {name: t.detach().cpu().contiguous() for name, t in self.model.state_dict().items()}
                write_whole(folder / "best.safetensors", lambda p: save_file(weights, p))
            write_whole(checkpoint, lambda p: torch.save(state | self._state(), p))
            report({"epoch": epoch, METRIC: float(score)})

        ended = self.trainer.cur_step > self.trainer.stopping_step
        if not ended and self.trainer.start_epoch < self.trainer.epochs:
            self.trainer.fit(self.train, self.valid, verbose=False, saved=False, callback_fn=keep)
        return state

    def _state(self) -> dict[str, Any]:
        """Return all that the next epoch depends on."""
        return {
            "cur_step": self.trainer.cur_step,
            "model": self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "order": self.train.generator.get_state(),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def _resume(self, checkpoint: Path) -> dict[str, Any]:
        if not checkpoint.is_file():
            return {"log": [], "best": float("-inf"), "best_epoch": -1}
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        self.model.load_state_dict(saved["model"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
        self.train.generator.set_state(saved["order"])
        torch.set_rng_state(saved["random"])
        torch.cuda.set_rng_state_all(saved["cuda"])
        self.trainer.start_epoch = saved["log"][-1]["epoch"] + 1
        self.trainer.cur_step = saved["cur_step"]
        self.trainer.best_valid_score = saved["best"]
        return {name: saved[name] for name in ("log", "best", "best_epoch")}

    def measure(self) -> dict[str, dict[str, float]]:
        """Return hopwise's own metrics of the model as it is, on the whole vocabulary."""
        parts = {"validation": self.valid, "test": self.test}
        return {
            name: {m: float(v) for m, v in self.trainer.evaluate(data, load_best_model=False).items()}
            for name, data in parts.items()
        }

    def by_token(self, weights: dict[str, Tensor], items: int, users: int) -> dict[str, Tensor]:
        """Return the weights with embeddings in the order of our tokens, not of hopwise's ids.

        Row 0 stays hopwise's padding for items. For users it is the zero vector: an unknown user.
        """
        ids = {field: self.dataset.field2token_id[field] for field in ("item_id", "user_id")}
        rows = [0, *(ids["item_id"][str(n)] for n in range(1, items + 1))]
        out = dict(weights)
        out["item_embedding.weight"] = weights["item_embedding.weight"][rows]
        if "user_embedding.weight" in weights:
            table = weights["user_embedding.weight"]
            known = table[[ids["user_id"][str(n)] for n in range(1, users + 1)]]
            out["user_embedding.weight"] = torch.cat([torch.zeros_like(table[:1]), known])
        return out


def work(job: Job, report: Report) -> None:
    """Run all trainings that are not finished; write the best one's weights and `outcome.json` to `job["out"]`."""
    out = Path(job["out"])
    results = [_trial(job, number, out / "trials" / str(number), report) for number in range(len(job["trials"]))]
    chosen = max(range(len(results)), key=lambda n: (results[n]["best"], -n))
    training = Training(job, job["trials"][chosen])
    best = load_file(out / "trials" / str(chosen) / "best.safetensors")
    training.model.load_state_dict(best)
    outcome = {
        "chosen": chosen,
        "trials": results,
        "settings": {name: training.config[name] for name in job["names"]},
        "hopwise": training.measure(),
    }
    weights = training.by_token(best, job["items"], job["users"])
    write_whole(out / "model.safetensors", lambda p: save_file(weights, p))
    write_whole(out / "outcome.json", lambda p: p.write_text(json.dumps(outcome), encoding="utf-8"))


def _trial(job: Job, number: int, folder: Path, report: Report) -> dict[str, Any]:
    """Run one training of the grid, from its checkpoint if there is one."""
    result = Training(job, job["trials"][number]).run(folder, lambda event: report({"trial": number, **event}))
    rate, decay = job["trials"][number]
    report({"trial": number, "best": result["best"], "best_epoch": result["best_epoch"]})
    return {"learning_rate": rate, "weight_decay": decay, **result}


def main() -> None:
    """Run the job in the file that the command line names."""
    job: Job = json.loads(Path(sys.argv.pop()).read_text(encoding="utf-8"))
    # hopwise prints to standard output, which is for answers: what it prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: dict[str, Any]) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    try:
        work(job, report)
    except ModuleNotFoundError as e:
        report({"missing": e.name})
        sys.exit(MISSING)


if __name__ == "__main__":
    main()
