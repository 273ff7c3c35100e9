"""Progress of training: a bar with the remaining time on a terminal, lines in a log file."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from prefrec.console import LOG_EVERY_S, console, is_quiet, say


class ProgressCallback(TrainerCallback):
    """A callback that shows step, loss and remaining time of a `transformers.Trainer`."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Progress | None = None
        self.started = self.last = 0.0
        self.first_step = 0
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = state.global_step
        if console.is_terminal and not is_quiet() and state.is_world_process_zero:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.description, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        text = f"{self.description}{self.note}"
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, description=text)
        elif time.monotonic() - self.last >= LOG_EVERY_S:
            self.last = time.monotonic()
            pace = (self.last - self.started) / max(1, state.global_step - self.first_step)
            left = pace * (state.max_steps - state.global_step)
            say(f"{text}: step {state.global_step}/{state.max_steps}, {left:.0f} s left")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kw: Any) -> None:
        if logs and "loss" in logs:
            reward = f", accuracy {logs['rewards/accuracies']:.2f}" if "rewards/accuracies" in logs else ""
            self.note = f" (loss {logs['loss']:.3f}{reward})"

    def stop(self) -> None:
        """Remove the bar, if there is one."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()
        say(f"{self.description}{self.note}: {state.global_step} steps in {time.monotonic() - self.started:.0f} s")
