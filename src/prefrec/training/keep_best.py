"""The best checkpoint by validation, and early stopping."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer, TrainerCallback

from prefrec import processes
from prefrec.console import say
from prefrec.files import read_json, sync, write_json, writing
from prefrec.lm.items import item_table, save_item_model

BEST = "best"
"""Folder of the best weights so far, in the folder of a stage."""
_ABOUT = "best.json"


class KeepBest(TrainerCallback):
    """A callback that saves the best weights so far: highest `eval_ndcg@10`, or else lowest `eval_loss`.

    Args:
        trainer: the trainer, whose output folder gets the folder `best`.
        patience: stop after N evaluations in a row without improvement. Default: do not stop early.
    """

    def __init__(self, trainer: Trainer, patience: int | None = None) -> None:
        self.trainer = trainer
        self.patience = patience
        self.folder = Path(str(trainer.args.output_dir)) / BEST
        self._save_after_evaluation = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the end of an epoch, evaluate before saving: a run resumed from the checkpoint would skip the evaluation.
        if control.should_save and (float(state.epoch).is_integer() or state.global_step >= state.max_steps):
            self._save_after_evaluation, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= self._save_after_evaluation
        self._save_after_evaluation = False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        value = metrics.get("eval_ndcg@10", -metrics["eval_loss"])
        best = processes.from_first(read_best(self.folder))
        if best is not None and best["step"] > state.global_step:
            best = None  # from an abandoned run
        if best is None or value > best["value"]:
            save_weights(self.trainer, self.folder, {"value": value, "step": state.global_step, "epoch": state.epoch})
            return
        evaluations = [line["step"] for line in state.log_history if "eval_loss" in line]
        since = sum(step > best["step"] for step in evaluations)
        if self.patience is not None and since >= self.patience:
            say(f"No improvement since epoch {best['epoch']:.1f}: stopping early")
            control.should_training_stop = True


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return the metric, step and epoch of the weights in a folder `best`, or None."""
    return read_json(folder / _ABOUT) or None


def save_weights(trainer: Trainer, folder: Path, about: dict[str, Any] | None = None) -> None:
    """Write the trained weights to a folder: an adapter, or the entire model if all weights were trained.

    A reader sees the old folder or the complete new one. All processes must call this function.
    """
    # Every process must take part, because each has only a part of sharded weights.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        with writing(folder):
            if item_table(model) is not None:
                save_item_model(model, scratch)
            elif isinstance(model, PeftModel):
                model.save_pretrained(str(scratch), selected_adapters=["default"], state_dict=weights)
            else:
                model.save_pretrained(str(scratch), state_dict=weights)
                trainer.processing_class.save_pretrained(str(scratch))
        if about is not None:
            write_json(scratch / _ABOUT, about)
        sync([*scratch.iterdir(), scratch])
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    trainer.accelerator.wait_for_everyone()
