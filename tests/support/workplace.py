"""Files for tests of the verbs: a log, a saved model, and a run of them until its alignment."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from command import succeed
from tiny_run import TRAINING, tiny_recipe, write_model, write_recipe, write_shop


@dataclass(frozen=True)
class Workplace:
    """Paths of the files, and the options that name the model; to be read only."""

    folder: Path
    shop: dict[str, Path]
    model: Path

    @cached_property
    def run(self) -> Path:
        """A run of the recipe until its alignment, made when the first test asks for it."""
        align = [TRAINING | {"negatives_from": "list", "num_negatives": 3}]
        recipe = write_recipe(self.folder, self.recipe, sft=TRAINING, align=align)
        succeed("run", recipe, "--out", self.folder / "run", "--until", "align")
        return self.folder / "run"

    @property
    def data(self) -> Path:
        return self.run / "data"

    @property
    def sft(self) -> Path:
        return self.run / "sft"

    @property
    def s_dpo(self) -> Path:
        return self.run / "align" / "s-dpo"

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
    folder = tmp_path_factory.mktemp("cli")
    return Workplace(folder, write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer))
