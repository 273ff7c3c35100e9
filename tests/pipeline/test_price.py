"""The price of a run: what is due is named, costs grow with what is read, and what was encoded is free."""

import pytest

from prefrec.pipeline import best
from prefrec.pipeline import price as prices
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.price import minutes, price
from prefrec.recipe import Recipe
from prefrec.stages import encoders
from prefrec.stages.encoders import title_vectors
from prefrec.stages.inputs import RunInputs
from prefrec.towers import title_store
from tiny_run import TITLES


@pytest.fixture
def priced(recipe, data, tmp_path, monkeypatch):
    """A function of changed sections that gives the price, on a machine of known speed."""
    monkeypatch.setattr(prices, "speed", lambda dtype: 1e9)
    monkeypatch.setattr(prices, "tables_seconds", lambda recipe, data: 10.0)
    monkeypatch.setattr(title_store, "cache_dir", lambda: tmp_path / "cache")

    def priced(until="report", **sections):
        raw = recipe.model_dump(mode="json")
        raw |= {k: raw[k] | own if isinstance(own, dict) else own for k, own in sections.items()}
        made = Recipe.model_validate(raw)
        return price(Plan(made, RunInputs(data, "", made.model, made.lora, 0), tmp_path / "run"), until)

    return priced


def test_what_is_due_is_named(priced, monkeypatch):
    monkeypatch.setattr(prices, "STEP", 0.0)
    found = priced()
    assert [cost.name for cost in found.costs] == ["sft", "dpo", "s-dpo", "evaluate"]
    assert all(cost.seconds > 0 for cost in found.costs)
    assert found.memory > 2**29
    told, least, most = (minutes(found.seconds * by) for by in (1, 0.5, 2))
    assert str(found).startswith(f"about {told} on this machine ({least} to {most}):")
    of_models = found.seconds - 10.0  # the time of baselines is not of products
    assert found.flops == pytest.approx(of_models * prices.EFFICIENCY * 1e9)
    assert f" {found.flops / 1e12:,.0f} TFLOP, " in str(found)
    assert "Cheaper: " in str(found)


def test_only_what_is_asked_for_is_priced(priced, recipe):
    assert [cost.name for cost in priced(until="sft").costs] == ["sft"]
    assert [cost.name for cost in priced(until="align").costs] == ["sft", "dpo", "s-dpo"]


def test_title_towers_are_priced_with_their_refit(priced, data):
    tower = {"kind": "title-tower", "vectors": "random", "epochs": 5}
    costs = {cost.name: cost for cost in priced(rankers=[tower], refit=True).costs}
    assert "title-tower refit" in costs
    assert costs["title-tower"].cheaper == "fewer rankers.title-tower.epochs"
    compared = len(data.train_interactions) * data.train_interactions["item_id"].n_unique()
    assert costs["title-tower"].seconds == pytest.approx(prices.TOWER_S * 5 * compared)
    assert costs["title-tower refit"].seconds > costs["title-tower"].seconds
    assert "title-tower" not in {cost.name for cost in priced(until="sft", rankers=[tower]).costs}


def test_costs_grow_with_what_is_read(priced, recipe):
    def of(name, **sections):
        return next(cost.seconds for cost in priced(**sections).costs if cost.name == name)

    assert of("sft", sft={"epochs": 2 * recipe.sft.epochs}) == pytest.approx(2 * of("sft"))
    assert of("sft", sft={"global_batch_size": 1, "per_device_batch_size": 1}) > of("sft")  # more steps
    assert of("evaluate", evaluate={"zero_shot": False}) < of("evaluate", evaluate={"zero_shot": True})
    assert of("evaluate", evaluate={"full_rows": 0}) < of("evaluate", evaluate={"full_rows": None})


def test_full_ranking_of_validation_rows_has_its_price(priced, data, monkeypatch):
    def seconds(slow_rows):
        monkeypatch.setattr(best, "SLOW_ROWS", slow_rows)
        return next(cost.seconds for cost in priced().costs if cost.name == "evaluate")

    assert len(data.validation) >= 20
    one = seconds(11) - seconds(10)
    assert one > 0
    assert seconds(20) - seconds(10) == pytest.approx(10 * one)


def test_titles_that_were_encoded_are_free(priced, data, recipe):
    items = {"model": {"answers": "items"}, "lora": None, "align": []}
    items |= {"evaluate": {"zero_shot": False, "generate_rows": 0}}
    first = priced(**items)
    assert [cost.name for cost in first.costs] == [f"{len(TITLES)} titles to encode", "sft", "evaluate"]
    assert "model.items.vectors=all-minilm-l6-v2" in first.costs[0].cheaper
    encoders._encoded.cache_clear()
    title_vectors(data, recipe.model.model_copy(update={"answers": "items"}))
    assert [cost.name for cost in priced(**items).costs] == ["sft", "evaluate"]


def test_a_model_that_cannot_be_looked_at_has_no_price(priced):
    assert priced(model={"name": "nobody/has-this"}) is None
