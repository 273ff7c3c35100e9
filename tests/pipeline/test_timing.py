"""Timing of a few steps: counted by a clock that strikes once a reading, with nothing left behind."""

from dataclasses import replace
from itertools import count

import pytest

from prefrec.pipeline import price as prices
from prefrec.pipeline import timing
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.price import price
from prefrec.pipeline.timing import STEPS, time_questions, time_training
from prefrec.recipe import Recipe
from prefrec.stages.inputs import RunInputs

ITEMS = {"model": {"answers": "items"}, "lora": None, "evaluate": {"zero_shot": False, "generate_rows": 0}}


@pytest.fixture
def planned(recipe, data, tmp_path):
    """A function of changed sections that gives a plan."""

    def planned(**sections) -> Plan:
        raw = recipe.model_dump(mode="json")
        raw |= {k: raw.get(k, {}) | own if isinstance(own, dict) else own for k, own in sections.items()}
        made = Recipe.model_validate(raw)
        return Plan(made, RunInputs(data, "", made.model, made.lora, 0), tmp_path)

    return planned


@pytest.fixture
def ticks(monkeypatch):
    """Each reading of the clock is a second after the one before."""
    seconds = map(float, count())
    monkeypatch.setattr(timing, "perf_counter", lambda: next(seconds))


@pytest.mark.parametrize("name", ["sft", "dpo", "s-dpo"])
def test_pace_of_a_row_is_that_of_steps_divided_by_rows(name, planned, tmp_path, ticks):
    pace, _ = time_training(planned().stage(name), 32, tmp_path / name)
    rows = STEPS * 8
    assert (pace.epoch, pace.before) == (pytest.approx(STEPS / rows), pytest.approx(1 / rows))
    assert not [*tmp_path.rglob("checkpoint-*")]


def test_the_first_step_warms_up(monkeypatch, planned, tmp_path):
    readings = iter([0.0, 10.0, 100.0, 101.0, 103.0])
    monkeypatch.setattr(timing, "perf_counter", lambda: next(readings))
    pace, _ = time_training(planned().stage("sft"), 32, tmp_path / "sft")
    assert pace.epoch == pytest.approx(1.5 * STEPS / (STEPS * 8))
    assert pace.before == pytest.approx(10 / (STEPS * 8))


def test_a_single_step_is_measured_itself(planned, tmp_path, ticks):
    pace, _ = time_training(planned().stage("sft"), 5, tmp_path / "sft")
    assert pace.epoch == pytest.approx(1 / 5)


def test_alignments_are_timed_before_their_miner_is_trained(planned, recipe, tmp_path, ticks):
    sasrec = {"kind": "sequential", "model": "SASRec", "hidden_size": 8}
    own = recipe.align[1].model_dump(mode="json")
    align = [own | {"name": "mined", "negatives_from": "hard", "miner": "SASRec", "negatives_pool": 20}]
    plan = planned(align=align, rankers=[sasrec])
    assert time_training(plan.stage("mined"), 32, tmp_path / "mined")[0].epoch > 0
    assert not (tmp_path / "rankers").exists()


def test_a_question_takes_its_share_of_a_call(planned, tmp_path, ticks, data):
    plan = planned()
    _, model = time_training(plan.stage("sft"), 32, tmp_path / "sft")
    asked = min(timing.SHARED, len(data.validation))
    assert time_questions(plan.recipe, data, model) == (pytest.approx(1 / asked), 1.0)
    plan = planned(evaluate={"full_rows": 0})
    assert time_questions(plan.recipe, data, model) == (pytest.approx(1 / asked), pytest.approx(1 / asked))


def test_without_examples_there_are_no_questions_to_time(planned, data):
    nothing = replace(data, validation=[], test=[])
    assert time_questions(planned().recipe, nothing, None) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_item_id_tokens_no_title_is_encoded_and_all_items_cost_as_a_list(
    planned, tmp_path, ticks, monkeypatch, dtype
):
    def encode(*args):
        raise AssertionError("titles were encoded")

    monkeypatch.setattr("prefrec.stages.train.item_vectors", encode)
    plan = planned(**ITEMS | {"model": {"answers": "items", "dtype": dtype}})
    _, model = time_training(plan.stage("s-dpo"), 32, tmp_path / "s-dpo")
    listed, full = time_questions(plan.recipe, plan.inputs.data, model)
    assert listed == full


def test_a_price_leaves_nothing_in_the_folder_of_the_run(planned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prices, "WORTH", 1)
    found = price(planned(refit=True))
    assert [*found.costs] == ["sft", "dpo", "s-dpo", "sft refit", "dpo refit", "s-dpo refit", "evaluate"]
    assert all(seconds > 0 for seconds in found.costs.values())
    assert not [*tmp_path.iterdir()]
    assert not capsys.readouterr().err
