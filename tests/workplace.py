"""What the verbs work on: a log, a saved model, and a run of them until its alignment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from command import succeed
from tiny_run import TRAINING, tiny_recipe, write_model, write_recipe, write_shop


@dataclass(frozen=True)
class Workplace:
    """Paths of the files, and the options that name the model."""

    shop: dict[str, Path]
    model: Path
    run: Path
    data: Path
    sft: Path
    s_dpo: Path

    @property
    def asked(self) -> tuple[str, ...]:
        """As the tiny recipe asks its model: by a prompt that lists the candidates."""
        return (*self.with_histories, "--model.templates", "1")

    @property
    def with_histories(self) -> tuple[str, ...]:
        """The default prompt."""
        return ("--model.name", str(self.model), "--model.dtype", "float32", "--model.max-length", "400")

    @property
    def recipe(self) -> dict[str, Any]:
        return tiny_recipe(self.shop, self.model)


@pytest.fixture(scope="session")
def place(tmp_path_factory, bpe_tokenizer) -> Workplace:
    """A recipe has been run until its alignment; to be read only."""
    folder = tmp_path_factory.mktemp("cli")
    shop, model = write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer)
    run = folder / "run"
    align = [TRAINING | {"negatives_from": "list", "num_negatives": 3}]
    recipe = write_recipe(folder, tiny_recipe(shop, model), sft=TRAINING, align=align)
    succeed("run", recipe, "--out", run, "--until", "align")
    return Workplace(shop, model, run, run / "data", run / "sft", run / "align" / "s-dpo")
