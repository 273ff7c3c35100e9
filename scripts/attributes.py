"""Measure what attributes of items add to a blend of counts, on validation examples.

`python scripts/attributes.py recipes/demo.yaml recipes/goodreads.yaml` writes the table of
lab/results/64-attributes.json. Weights of a user's examples are learnt from other users.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import experiments_page
import polars as pl
from rank_tables import signed

from prefrec import evaluate_full
from prefrec.data import Catalogue, PreparedData
from prefrec.files import read_json
from prefrec.intake import prepare
from prefrec.rankers.attributes import Comparison
from prefrec.rankers.base import Ranker
from prefrec.rankers.blend import BlendConfig
from prefrec.recipe import Recipe, load_recipe
from prefrec.stages.baseline import CountedBaselineStage
from prefrec.stages.blend import BlendStage
from prefrec.stages.inputs import RunInputs

PARTS = ["title TF-IDF", "window co-occurrence", "transition graph", "EASE", "item-kNN"]
"""Those of the presets that need no training."""
ATTRIBUTES: dict[str, Comparison] = {"genres": "same", "year": "near"}
GENRES = "name2genre.json"
"""File of Goodreads with the genres of titles."""
NAMES = {"movielens-100k": "MovieLens-100K", "goodreads-windows": "Goodreads windows"}
RESULT = experiments_page.RESULTS / "64-attributes.json"


def read(recipe: Recipe) -> PreparedData:
    """Return the data of a recipe, with the genres of books."""
    data = prepare(recipe.data)
    if recipe.data.path is None or not (file := Path(recipe.data.path) / GENRES).exists():
        return data
    of_title: dict[str, list[str]] = read_json(file)
    genres = [of_title.get(title) for title in data.catalogue.frame["title"]]
    column = pl.Series("genres", genres, pl.List(pl.String))
    return replace(data, catalogue=Catalogue(data.catalogue.frame.with_columns(column)))


def blend(inputs: RunInputs, name: str, attributes: dict[str, Comparison]) -> Ranker:
    """Return a blend of counts and attributes that scores each user with the weights of others."""
    config = BlendConfig(name=name, parts=PARTS, attributes=attributes, select=True)
    before = {part: CountedBaselineStage(inputs, part) for part in PARTS}
    stage = BlendStage(inputs, config, Path(mkdtemp()), before)
    stage.make()
    return stage.load_out_of_fold(inputs.batch_size)


def compared(path: Path) -> list[list[str]]:
    """Return the rows of a recipe's data: a set of attributes each."""
    recipe = load_recipe(path)
    data = read(recipe)
    inputs = RunInputs(data, str(path), recipe.model, recipe.lora, recipe.seed)
    known = {c: how for c, how in ATTRIBUTES.items() if c in data.catalogue.frame.columns}
    sets = [{c: how} for c, how in known.items()] + ([known] if len(known) > 1 else [])
    blends = {" and ".join(some): blend(inputs, f"blend-{n}", some) for n, some in enumerate([{}, *sets])}
    counts = blends.pop("")
    pairs = [(one.name, counts.name) for one in blends.values()]
    found = evaluate_full([counts, *blends.values()], data, split="validation", compare=pairs)
    rows = []
    for label, one in blends.items():
        (gain,) = (c for c in found.comparisons if c.ranker == one.name and c.metric == "ndcg@10")
        means = [f"{found.metrics[name]['ndcg@10'].mean:.4f}" for name in (counts.name, one.name)]
        rows.append([NAMES[recipe.data.source], f"{found.n:,}", label, *means, signed(gain)])
    return rows


def main(recipes: Sequence[str]) -> None:
    """Measure on the data of each recipe, and write the table."""
    rows = [row for path in recipes for row in compared(Path(path))]
    columns = ["data", "validation examples", "attributes", "blend of counts", "with attributes", "difference"]
    table = {"title": "NDCG@10 in full ranking of validation examples", "columns": columns, "rows": rows}
    experiments_page.save((read_json(RESULT) or {}) | {"tables": [table]}, RESULT)


if __name__ == "__main__":
    main(sys.argv[1:])
