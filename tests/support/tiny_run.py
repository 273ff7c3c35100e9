"""A whole run in small: a made-up log with titles, a saved model, and the recipe that puts them together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import yaml

from prefrec.data import PreparedData
from prefrec.data.parquet import read_parquet
from prefrec.intake import prepare
from prefrec.recipe import Recipe

if TYPE_CHECKING:  # tests of the core take titles and logs from here
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

USERS, ITEMS, LENGTH = 40, 60, 9
FIRST = ("Red", "Old", "Lost", "Last", "Cold", "Wild")
SECOND = ("Alien", "Heat", "Emma", "Story", "Days", "Men", "Babe", "Eye", "Opus", "Night")
TITLES = [f"{a} {b}" for a in FIRST for b in SECOND]

TRAINING = {"learning_rate": 5e-3, "epochs": 5, "rows": 40, "global_batch_size": 8}
"""Settings of SFT and of an alignment: 25 steps, five of them logged."""

RATED = {"negatives_from": "rated", "num_negatives": 3, "rows": 16, "learning_rate": 5e-3}
"""An alignment with rejected items from the log."""


def write_shop(folder: Path, *, titles: list[str] = TITLES) -> dict[str, Path]:
    """`log.csv` and `items.csv`: each user walks through the items with a stride of 1 to 3."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    log = [
        (f"u{u:02}", f"i{(start + n * (1 + u % 3)) % ITEMS}", 1_000 * n + u)
        for u, start in enumerate(rng.integers(ITEMS, size=USERS).tolist())
        for n in range(LENGTH)
    ]
    paths = {"interactions": folder / "log.csv", "items": folder / "items.csv"}
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(paths["interactions"])
    pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)], "title": titles}).write_csv(paths["items"])
    return paths


def write_rated_log(folder: Path) -> Path:
    """`log.parquet`: 40 users with 30 of the items each in random order, and random ratings from 1 to 5."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(ITEMS)[:30].tolist() for _ in range(40)]
    taken = [(user, *own) for user, order in enumerate(orders) for own in enumerate(order)]
    rows = [(f"u{user:02}", f"i{item}", n, float(rng.integers(1, 6))) for user, n, item in taken]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    log.write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def write_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A saved two-layer Llama with its tokenizer, as a local model folder."""
    from tiny import small_llama

    small_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_recipe(shop: dict[str, Path], model: Path) -> dict[str, Any]:
    """Prepare, SFT, DPO, S-DPO and evaluation, a few steps each; change it as you like."""
    training = {"rows": 32, "learning_rate": 5e-3, "save_steps": 2}
    training |= {"global_batch_size": 8, "per_device_batch_size": 4}
    listed = {"negatives_from": "list"}
    files = {name: str(path) for name, path in shop.items()}
    return {
        "name": "tiny",
        "data": {"source": "files", **files, "domain": "movies", "candidates": {"size": 6}, "history_length": 4},
        "model": {"name": str(model), "dtype": "float32", "max_length": 400, "templates": ["1"]},
        "lora": {"r": 4},
        "sft": {**training, "epochs": 2, "eval_rows": 8, "eval_steps": 4},
        "align": [
            {**training, **listed, "name": "dpo", "loss": "dpo", "num_negatives": 1},
            {**training, **listed, "name": "s-dpo", "num_negatives": 3},
        ],
        "evaluate": {"rows": 20, "generate_rows": 4, "ks": [1, 3]},
    }


def write_recipe(folder: Path, recipe: dict[str, Any], **changes: Any) -> Path:
    """The recipe as a YAML file; `changes` replace whole sections."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy(recipe) | changes), encoding="utf-8")
    return path


def read_tables(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each reading of prepared data adds the names of its tables."""
    names: list[str] = []

    def read(path: Path) -> pl.DataFrame:
        names.append(path.name)
        return read_parquet(path)

    monkeypatch.setattr("prefrec.data.store.read_parquet", read)
    return names


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, bpe_tokenizer) -> Recipe:
    """The recipe of this module, on files of its own; copy it before you change it."""
    folder = tmp_path_factory.mktemp("tiny")
    shop, model = write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer)
    return Recipe.model_validate(tiny_recipe(shop, model))


@pytest.fixture(scope="session")
def data(recipe) -> PreparedData:
    """The data of that recipe."""
    return prepare(recipe.data)


@pytest.fixture(scope="session")
def rated_recipe(recipe, tmp_path_factory) -> Recipe:
    """The tiny recipe on a log of 40 users with 25 items each, ratings from 1 to 5, and three items shown."""
    path = tmp_path_factory.mktemp("rated") / "log.parquet"
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        items = rng.permutation(ITEMS).tolist()
        for n in range(25):
            shown = [f"i{i}" for i in rng.choice(items[25:], 3, replace=False)]
            rows.append((f"u{user:02}", f"i{items[n]}", n, float(1 + items[n] % 5), shown))
    schema = ["user_id", "item_id", "timestamp", "rating", "shown"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"interactions": str(path), "split": "time-share", "columns": {"impressions": "shown"}}
    return Recipe.model_validate(raw | {"align": [raw["align"][1] | RATED], "sft": raw["sft"] | {"epochs": 1}})


@pytest.fixture(scope="session")
def rated(rated_recipe) -> PreparedData:
    return prepare(rated_recipe.data)
