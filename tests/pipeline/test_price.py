"""The price of a run: what is due is named, costs grow with rows, epochs and questions, and a refit is counted."""

import pytest

from prefrec.pipeline import best, timing
from prefrec.pipeline import price as prices
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.price import Price, price
from prefrec.pipeline.timing import Pace
from prefrec.recipe import Recipe
from prefrec.stages.inputs import RunInputs

EPOCH, BEFORE, LISTED, FULL = 2.0, 0.5, 0.1, 3.0
"""Seconds that were measured: of a row in an epoch and before, of a question about a list and about all items."""


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The stages that were timed; each has the same pace, and every run is worth it."""
    stages: list[str] = []

    def time_training(stage, rows, folder):
        stages.append(stage.label)
        return Pace(EPOCH, BEFORE), None

    monkeypatch.setattr(timing, "time_training", time_training)
    monkeypatch.setattr(timing, "time_questions", lambda recipe, data, model: (LISTED, FULL))
    monkeypatch.setattr(prices, "WORTH", 1)
    return stages


@pytest.fixture
def priced(recipe, data, tmp_path):
    """A function of changed sections that gives the price."""

    def priced(until="report", **sections) -> Price | None:
        raw = recipe.model_dump(mode="json")
        raw |= {k: raw.get(k, {}) | own if isinstance(own, dict) else own for k, own in sections.items()}
        made = Recipe.model_validate(raw)
        return price(Plan(made, RunInputs(data, "", made.model, made.lora, 0), tmp_path), until)

    return priced


def test_each_training_that_is_due_costs_its_rows_and_epochs(priced, measured, recipe):
    costs = priced().costs
    assert [*costs] == ["sft", "dpo", "s-dpo", "evaluate"]
    rows, validated = recipe.sft.rows, recipe.sft.eval_rows
    assert costs["sft"] == pytest.approx(rows * (BEFORE + 2 * EPOCH) + 2 * validated * LISTED)
    assert costs["dpo"] == pytest.approx(rows * (BEFORE + EPOCH))
    assert priced(sft={"epochs": 4}).costs["sft"] - costs["sft"] == pytest.approx(
        rows * 2 * EPOCH + 2 * validated / 10
    )
    assert priced(sft={"rows": rows // 2, "eval_rows": 0}).costs["sft"] == rows / 2 * (BEFORE + 2 * EPOCH)
    assert measured[:3] == ["sft", "dpo", "s-dpo"]


def test_negatives_of_the_reference_and_validation_cost_questions(priced, measured, recipe):
    align = recipe.align[1].model_dump(mode="json")
    cheapest = priced().costs["s-dpo"]

    def more(**changes) -> float:
        return priced(align=[align | changes]).costs["s-dpo"] - cheapest

    assert more(negatives_from="reference") == pytest.approx(32 * FULL)
    assert more(negatives_from="uniform") == 0
    assert more(eval_rows=10, eval_steps=2) == pytest.approx(2 * 10 * LISTED)  # there are four steps
    assert more(eval_rows=10, load_best_model_at_end=True) == pytest.approx(10 * LISTED)


def test_only_what_is_asked_for_is_priced(priced, measured):
    assert [*priced(until="sft").costs] == ["sft"]
    assert [*priced(until="align").costs] == ["sft", "dpo", "s-dpo"]


def test_a_refit_is_counted_at_the_pace_of_the_first_training(priced, measured):
    costs = priced(refit=True).costs
    assert [*costs][3:] == ["sft refit", "dpo refit", "s-dpo refit", "evaluate"]
    assert costs["sft refit"] == pytest.approx(32 * (BEFORE + 2 * EPOCH))  # without validation
    assert measured == ["sft", "dpo", "s-dpo"]
    assert priced(refit={"epochs": 1.0, "replay": 0.0}).costs["sft refit"] <= 32 * (BEFORE + EPOCH)


def test_evaluation_costs_questions_under_test_for_validation_and_of_blends(priced, measured, data, monkeypatch):
    def seconds(**sections):
        return priced(**sections).costs["evaluate"]

    validation = len(data.validation)
    assert 20 <= validation <= best.SLOW_ROWS
    full, lists = seconds(evaluate={"full_rows": 0}), seconds(evaluate={"full_rows": 0, "rows": 10})
    assert full - lists == pytest.approx(4 * 10 * LISTED)  # four models, 20 rows
    assert seconds(evaluate={"full_rows": 5}) - full == pytest.approx(4 * (5 + 5) * FULL)
    assert seconds(evaluate={"full_rows": None}) - full == pytest.approx(4 * (20 + validation) * FULL)
    assert seconds(evaluate={"zero_shot": False, "full_rows": 0}) == pytest.approx(3 / 4 * full)
    blend = {"kind": "blend", "parts": ["popularity", "sft"]}
    alone = seconds(evaluate={"full_rows": 5})
    blended = seconds(rankers=[blend], evaluate={"full_rows": 5})
    assert blended - alone == pytest.approx((20 + 5 + validation) * FULL)


def test_the_message_gives_a_range_and_each_part():
    text = str(Price({"sft": 600.0, "evaluate": 30.0}))
    assert text.startswith("Language models will take 7 min to 16 min on this machine")
    assert text.endswith("sft 10 min, evaluate 30 s")
    assert "2 h 30 min to 5 h 38 min" in str(Price({"sft": 3.75 * 3600}))


def test_few_steps_are_not_worth_measuring(priced, measured, monkeypatch):
    monkeypatch.setattr(prices, "WORTH", 17)  # of 8 + 4 + 4 that are due
    assert priced() is None
    assert not measured


def test_a_model_that_is_not_here_has_no_price(priced, measured):
    assert priced(model={"name": "nobody/has-this"}) is None
    assert not measured
