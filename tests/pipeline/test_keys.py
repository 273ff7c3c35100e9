"""Keys of the stages of every shipped recipe: a key that changes trains all users' runs again.

A change of results is a reason to write the new keys down: `python tests/pipeline/test_keys.py`. A change of the
program's shape is none.
"""

import json
from pathlib import Path

import polars as pl
import pytest

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.pipeline import prepare
from prefrec.pipeline.plan import Plan
from prefrec.presets import preset
from prefrec.recipe import Recipe, checked_recipe, load_recipe
from prefrec.stages import inputs, title_tower
from prefrec.stages.inputs import RunInputs
from prefrec_lab import studies
from prefrec_systems.morec import stage as morec

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).with_name("keys.json")
SHIPPED = [
    *sorted((ROOT / "recipes").glob("*.yaml")),
    *sorted((ROOT / "src/prefrec/presets").glob("*.yaml")),
    *sorted(Path(*studies.__path__).glob("*.yaml")),
]


def made_up() -> PreparedData:
    """Three users and four items."""
    titles = ["Alien", "Brazil", "Charade", "Dune"]
    more = dict.fromkeys(("brand", "categories", "description"), titles)  # what a recipe's item_text reads
    items = Catalogue(pl.DataFrame({"item_id": list("abcd"), "title": titles, **more}))
    rows = [RankingExample(f"u{n}", ("a",), ("b", "c", "d"), "bcd"[n]) for n in range(3)]
    log = [(e.user_id, i, n) for e in rows for n, i in enumerate((*e.history, e.target))]
    schema = ["user_id", "item_id", "timestamp"]
    return PreparedData(items, rows[:1], rows[1:2], rows[2:], pl.DataFrame(log, schema=schema, orient="row"))


def shipped_recipe(path: Path) -> Recipe:
    if path.parent.name == "presets":
        return checked_recipe(preset(path.stem) | {"name": path.stem, "data": {"source": "movielens-100k"}})
    return load_recipe(path)


def keys_of(path: Path, folder: Path, monkeypatch) -> dict[str, str]:
    """Names of stages and rankers, and their keys; those for the whole catalogue apart."""
    for module in (inputs, morec, title_tower):
        monkeypatch.setattr(module, "base_digest", lambda name: f"digest of {name}")
    monkeypatch.setattr(prepare, "content_digest", lambda file: f"digest of {file.name}")
    recipe = shipped_recipe(path)
    plan = Plan(recipe, RunInputs(made_up(), "data", recipe.model, recipe.lora, recipe.seed), folder)
    stages = [plan.stage(name) for name in plan.names]
    keys = {"prepare": prepare.PrepareStage(recipe, folder / "data").key} | {s.name: s.key for s in stages}
    return keys | {f"{s.name}, whole catalogue": s.full.key for s in stages if s.full and s.full.key != s.key}


def test_every_shipped_recipe_is_frozen():
    assert sorted(json.loads(FROZEN.read_text())) == sorted(path.stem for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_keys_are_those_of_before(path, tmp_path, monkeypatch):
    assert keys_of(path, tmp_path, monkeypatch) == json.loads(FROZEN.read_text())[path.stem]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        frozen = {path.stem: keys_of(path, Path("/nowhere"), patch) for path in SHIPPED}
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")
