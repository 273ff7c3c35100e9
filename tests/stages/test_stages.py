"""The recipe's `rankers:`: kinds by name, stages in order, each a row of the table that may build on those before."""

import json
from typing import Any, Literal

import numpy as np
import pytest

from prefrec import stages
from prefrec.errors import ConfigError
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.config import RankerConfig
from prefrec.recipe import Recipe, checked_recipe, load_recipe
from prefrec.runs.stage import stage
from prefrec.stages import STAGES, kind_names, stage_class
from prefrec.stages.base import RankerStage


class Shorter(RankerConfig):
    """A kind for these tests: prefers short titles."""

    kind: Literal["shorter"] = "shorter"
    name: str = "shorter"
    weight: float = 1.0
    after: tuple[str, ...] = ()

    def needs(self):
        return {"after": self.after}


class Asked(RankerConfig):
    """Settings with an address."""

    kind: Literal["asked"] = "asked"
    name: str = "asked"
    url: str = "https://h.org/v1?key=S3cr3t"
    rows: int = 1


class AskedStage(RankerStage):
    key = "now"

    def make(self):
        """Write nothing."""

    def load(self, batch_size):
        raise NotImplementedError


def test_an_address_with_secrets_is_not_named_as_changed(tmp_path):
    """`stage.json` keeps addresses without their secrets."""
    folder = tmp_path / "asked"
    with stage(folder, "before", "asked", Asked().model_dump(mode="json")):
        pass
    assert AskedStage(None, Asked(rows=2), folder, {}).changed() == ["asked.rows"]


class ShorterRanker:
    """Scores −weight × the length of the title; counts how often it is asked."""

    def __init__(self, name: str, weight: float, catalogue: Any, asked: list[str]) -> None:
        self.name, self.weight, self.catalogue, self.asked = name, weight, catalogue, asked

    def score(self, examples):
        self.asked.append(self.name)
        return np.array([[-self.weight * len(t) for t in self.catalogue.titles_of(e.candidates)] for e in examples])


@pytest.fixture
def seen(monkeypatch) -> dict[str, list]:
    seen: dict[str, list] = {"before": [], "asked": []}

    class ShorterStage(RankerStage):
        Config = Shorter
        full = None

        def __init__(self, inputs, config, folder, before, first=None):
            super().__init__(inputs, config, folder, before, first)
            seen["before"].append(list(before))

        @property
        def key(self):
            return self.inputs.key(shorter=self.config.model_dump())

        def load(self, batch_size):
            return ShorterRanker(self.name, self.config.weight, self.inputs.data.catalogue, seen["asked"])

    monkeypatch.setitem(STAGES, "shorter", ShorterStage)
    return seen


def _recipe(recipe: Recipe, rankers: list[Any]) -> Recipe:
    return Recipe.model_validate(recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": rankers})


TWO = [{"kind": "shorter"}, {"kind": "shorter", "name": "much-shorter", "weight": 2, "after": ["random", "shorter"]}]


def test_they_are_rows_of_the_table_and_asked_again_when_the_key_changes(seen, recipe, tmp_path):
    run_recipe(_recipe(recipe, TWO), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["metrics"]
    assert list(metrics)[-2:] == ["shorter", "much-shorter"]
    assert seen["before"] == [[], ["random", "shorter"]]  # it gets what it needs
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    assert seen["asked"] == ["shorter", "much-shorter"]
    run_recipe(_recipe(recipe, [TWO[0], {**TWO[1], "weight": 3}]), tmp_path)
    assert seen["asked"] == ["shorter", "much-shorter", "much-shorter"]


def test_an_earlier_last_stage_leaves_them_out(seen, recipe, tmp_path):
    run_recipe(_recipe(recipe, TWO), tmp_path, until="align")
    assert seen["before"] == []
    run_recipe(_recipe(recipe, TWO), tmp_path, until="rankers")
    assert len(seen["before"]) == 2
    assert not (tmp_path / "metrics.json").exists()


def test_every_kind_has_its_name():
    for kind in kind_names():
        config = stage_class(kind).Config()
        assert (config.kind, bool(config.name)) == (kind, True)


def test_without_the_compared_systems_a_recipe_says_what_to_install(monkeypatch):
    monkeypatch.setattr("prefrec.stages.entry_points", lambda group: ())
    monkeypatch.setattr("prefrec.stages.STAGES", {})
    stages._entry_points.cache_clear()
    try:
        for kind in ("sequential", "morec"):
            with pytest.raises(ConfigError, match=r"pip install \./systems"):
                checked_recipe({"name": "x", "rankers": [{"kind": kind}]})
        assert kind_names() == ["blend", "title-tower"]
    finally:
        stages._entry_points.cache_clear()
