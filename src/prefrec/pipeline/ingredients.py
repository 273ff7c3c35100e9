"""What the training stages of a run share, and when one of them is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrec.console import say
from prefrec.data import PreparedData
from prefrec.pipeline.entry import model_key
from prefrec.pipeline.recipe import LoraSection, ModelSection
from prefrec.pipeline.train import WEIGHTS
from prefrec.rankers.lm import BATCH_SIZE
from prefrec.runs.stage import is_finished, stage_key


@dataclass(frozen=True)
class Ingredients:
    """What the training stages are made of: data and the key of it, base model, adapter, seed.

    `batch_size` is rows a pass of a stage that asks rankers; no outcome, and so no key, depends on it.
    """

    data: PreparedData
    data_key: str
    model: ModelSection
    lora: LoraSection | None
    seed: int
    batch_size: int = BATCH_SIZE

    def key(self, **more: Any) -> str:
        """Return the key of a stage made of these and `more`."""
        return stage_key(
            data=self.data_key,
            model=model_key(self.model),
            lora=self.lora.model_dump() if self.lora else None,
            seed=self.seed,
            **more,
        )

    @property
    def weights_files(self) -> list[str]:
        """Files, relative to its folder, that a stage which trains a language model leaves."""
        return [f"{WEIGHTS}/{'config.json' if self.lora is None else 'adapter_config.json'}"]


def due(folder: Path, key: str, name: str, made: Sequence[str]) -> bool:
    """Return True if a stage has still to run, and print its name.

    Args:
        folder: of the stage.
        key: of what it would be made from now.
        name: as the user knows it.
        made: files, relative to the folder, that a finished stage has.
    """
    if is_finished(folder, key) and all((folder / file).is_file() for file in made):
        say(f"[dim]{name}: unchanged[/dim]")
        return False
    say(f"[bold]{name}[/bold]")
    return True
