"""What the verbs work on: a log, a saved model, and what each verb made of them for the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from command import succeed
from tiny_run import TRAINING, tiny_recipe, write_model, write_shop


@dataclass(frozen=True)
class Workplace:
    """Paths of the files, and the options that name the model."""

    shop: dict[str, Path]
    model: Path
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
    """`prepare`, `sft` and `align` have been run; to be read only."""
    folder = tmp_path_factory.mktemp("cli")
    shop, model = write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer)
    place = Workplace(shop, model, folder / "data", folder / "sft", folder / "s-dpo")
    files = ("--source", "files", "--interactions", shop["interactions"], "--items", shop["items"])
    succeed("prepare", place.data, *files, "--domain", "movies", "--candidates.size", 6, "--history-length", 4)
    succeed("sft", place.data, place.sft, *place.asked, *TRAINING)
    start = ("--adapter", place.sft / "adapter", "--negatives-from", "list", "--num-negatives", 3)
    succeed("align", place.data, place.s_dpo, *start, *place.asked, *TRAINING)
    return place
