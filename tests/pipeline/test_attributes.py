"""Attributes of the catalogue in a blend: a whole run on a shop whose users stay with a category and a price."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import yaml

import prefrec
from command import succeed
from prefrec.errors import ConfigError
from prefrec.export.ranker import export_ranker
from prefrec.pipeline.opened import open_run
from prefrec.rankers.blend import BlendConfig, Weights
from prefrec.recipe import load_recipe
from prefrec.recommender import Recommender
from prefrec.stages.baseline import AttributeStage

USERS, ITEMS, LENGTH = 160, 400, 8
PARTS = ["window co-occurrence", "title TF-IDF"]
ATTRIBUTES = {"category": "same", "price": "near", "colour": "same"}
NAMES = ["same category", "near price", "same colour"]
RECIPE = {
    "evaluate": {"baselines": ["popularity", "window co-occurrence"], "zero_shot": False},
    "rankers": [{"kind": "blend", "parts": PARTS, "attributes": ATTRIBUTES, "select": True}],
    "refit": True,
}


def _shop():
    """Return log and catalogue: a user buys in two categories at one level of prices, and colours mean nothing."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(20, size=ITEMS)
    level = rng.normal(size=ITEMS)
    rows = []
    for user in range(USERS):
        own, usual = rng.choice(20, 2, replace=False), rng.normal()
        weights = np.isin(kinds, own) * np.exp(-2 * (level - usual) ** 2)
        bought = rng.choice(ITEMS, LENGTH, replace=False, p=weights / weights.sum())
        rows += [(f"u{user:03}", f"i{i}", 1_600_000_000 + 86_400 * (n + user % 9)) for n, i in enumerate(bought)]
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(ITEMS)],
            "title": [f"Thing {i}" for i in range(ITEMS)],
            "category": [None if i % 50 == 7 else f"c{k}" for i, k in enumerate(kinds)],
            "price": [None if i % 50 == 9 else 10 * float(np.exp(x)) for i, x in enumerate(level)],
            "colour": [f"k{k}" for k in rng.integers(8, size=ITEMS)],
        }
    )
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row"), items


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attributes") / "run"
    prefrec.fit(*_shop(), RECIPE, out=folder)
    return folder


@pytest.fixture(scope="module")
def rec(folder):
    return Recommender.from_run(folder, "blend")


def _weights(folder):
    return Weights.from_json(json.loads((folder / "rankers/blend/blend.json").read_text()))


def test_attributes_that_help_are_kept_and_others_are_left_out(folder):
    weights = _weights(folder)
    whole = weights.logits[""]
    by_name = dict(zip(whole.names, whole.weights, strict=True))
    assert by_name["same category"] > 0.5
    assert by_name["near price"] > 0.3
    assert "same colour" in weights.left_out
    said = (folder / "report.html").read_text()
    assert "same colour" in said.split("left out, because")[1]


def test_the_table_says_what_each_attribute_adds(folder):
    full = json.loads((folder / "metrics.json").read_text())["full_catalogue"]
    added = {c["against"]: c for c in full["comparisons"] if c["ranker"] == "blend"}
    assert added["blend without same category"]["low"] > 0
    assert "blend without near price" in added
    assert "blend without same colour" not in added
    reached = {name: of["ndcg@10"]["mean"] for name, of in full["metrics"].items()}
    assert reached["blend"] > reached["window co-occurrence"]


def test_new_items_get_the_score_of_their_attributes_and_no_median(folder):
    """Items without interactions have attributes like others."""
    run = open_run(folder)
    stage = run.stage("blend")
    assert [type(part) for part in stage.parts.stages[2:]] == [AttributeStage] * 3
    fast, slow = stage.parts.rankers("test", 4)
    assert ([part.name for part in fast], slow) == ([*PARTS, *NAMES], [])
    rows, new = run.data.test[:4], _shop()[1].filter(pl.col("category").is_not_null())["item_id"].to_list()
    asked = [replace(e, candidates=tuple(new), target=new[0]) for e in rows]
    alone = stage.parts.stages[2].load(4).score(asked)
    np.testing.assert_array_equal(fast[2].score(asked), alone)


def test_all_doors_have_the_same_answers(folder, rec, tmp_path):
    user, histories = "u003", {"a": ["Thing 5", "i9"], "b": ["i7"], "c": []}
    everyone = rec.recommend_all(k=5)
    for name in (user, "u100"):
        alone = rec.recommend(user=name, k=5)
        assert everyone.filter(user_id=name)["item_id"].to_list() == [r.item_id for r in alone]
    given = rec.recommend_all(k=5, histories=histories)
    for name, history in histories.items():
        own = rec.recommend(history, 5).frame()
        assert given.filter(user_id=name)["item_id"].equals(own["item_id"])
    moved = export_ranker(open_run(folder), "blend", tmp_path / "exported").rename(tmp_path / "elsewhere")
    exported = Recommender.from_pretrained(moved)
    want, got = (r.recommend(["i5", "i9"], 20).frame() for r in (rec, exported))
    assert want["item_id"].equals(got["item_id"])
    np.testing.assert_allclose(want["score"], got["score"], rtol=1e-6)


def test_effects_of_history_items_are_given_by_attribute(rec):
    items = dict(_shop()[1].select("item_id", "category").iter_rows())
    asked = next(i for i in items if items[i] == items["i5"] and i != "i5")
    other = next(i for i in items if items[i] and items[i] != items["i5"])
    like, unlike = rec.explain([other, "i5"], asked)[::-1]
    assert like.parts["same category"] > 0 > unlike.parts["same category"]
    np.testing.assert_allclose(sum(like.parts.values()), like.effect, atol=1e-6)


def test_a_wrong_column_is_refused_before_anything_is_made(tmp_path):
    wrong = RECIPE["rankers"][0] | {"attributes": {"categry": "same"}}
    with pytest.raises(ConfigError, match=r"no column 'categry'; .*did you mean category"):
        prefrec.fit(*_shop(), RECIPE | {"rankers": [wrong]}, out=tmp_path / "run")
    assert not (tmp_path / "run/rankers").exists()
    with pytest.raises(ValueError, match="'same category' is the name of an attribute: give the ranker another name"):
        BlendConfig(parts=["same category"], attributes={"category": "same"})


def test_init_and_fit_propose_columns_that_look_like_attributes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, items = _shop()
    more = items.with_columns(
        link="https://shop/" + pl.col("item_id"), kind_id=pl.int_range(ITEMS) % 30, rooms=pl.int_range(ITEMS) % 4
    )
    log.write_csv("log.csv")
    more.write_csv("items.csv")
    text = succeed("init", "--interactions", "log.csv", "--items", "items.csv", "--preset", "baselines")
    want = {"category": "same", "price": "near", "colour": "same", "kind_id": "same", "rooms": "same"}
    (blend,) = (r for r in yaml.safe_load(text)["rankers"] if r["kind"] == "blend")
    assert blend["attributes"] == want
    (tmp_path / "shop.yaml").write_text(text)
    assert next(r for r in load_recipe(tmp_path / "shop.yaml").rankers if r.kind == "blend").attributes == want
    recipes = []

    def noted(recipe, folder):
        recipes.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("prefrec.from_frames.run_recipe", noted)
    for recipe in ("baselines", {"preset": "baselines"} | RECIPE):
        with pytest.raises(KeyboardInterrupt):
            prefrec.fit(log, more, recipe)
    blends = [ranker for recipe in recipes for ranker in recipe.rankers if ranker.kind == "blend"]
    assert [blend.attributes for blend in blends] == [want, ATTRIBUTES]  # one's own entry stays as it is
