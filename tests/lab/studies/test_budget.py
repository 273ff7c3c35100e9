"""The budget curve: disjoint rows of equal number, the same SFT model for all arms, and the whole study."""

import numpy as np
import polars as pl
import pytest

from prefrec.evaluation import Interval
from prefrec.intake import prepare
from prefrec.pipeline.opened import open_run
from prefrec.prompts import load_template
from prefrec.stages.training_rows import alignment_rows, training_rows
from prefrec_lab.studies import budget
from prefrec_lab.studies.budget import (
    BUDGET,
    CONTROL,
    START,
    arms,
    budget_recipe,
    is_equivalent,
    sequences_recipe,
    values_of,
)
from prefrec_lab.study_tools.carry_out import base_recipe, carry_out


@pytest.fixture(scope="module")
def base(base):
    """The tiny recipe, with candidates in the prompt."""
    raw = base.model_dump(mode="json")
    raw["model"]["templates"] = ["1"]
    raw["sft"] |= {"rows": None}
    raw["align"] = [raw["align"][0] | {"rows": None, "negatives_from": "list"}]
    raw["evaluate"] |= {"generate_rows": None}
    raw["data"]["candidates"]["size"] = 10
    return type(base).model_validate(raw)


@pytest.mark.parametrize("rows", [12, 20])
def test_arms_read_the_same_rows_and_none_of_sft(base, monkeypatch, rows):
    monkeypatch.setattr(budget, "ARM_ROWS", 15)
    recipe, data = budget_recipe(base, rows), prepare(base.data)
    read = {id_of(e) for e in training_rows(data, recipe.sft, 0)}
    assert len(read) == rows
    others = [{id_of(e) for e in alignment_rows(data, arm, 0)} for arm in recipe.align]
    assert all(len(own) == 15 and not own & read for own in others)
    assert all(own == others[0] for own in others)


def id_of(example):
    return example.user_id, example.target, len(example.history)


def test_the_control_goes_on_with_the_loss_and_the_rate_of_sft(base):
    *preferences, low, control = arms(base)
    assert (control.name, control.loss, control.learning_rate) == (CONTROL, "sft", base.sft.learning_rate)
    assert (low.loss, low.learning_rate) == ("sft", 1e-4)
    found = {(a.loss, a.num_negatives, a.beta, a.learning_rate) for a in preferences}
    negatives, beta = base.align[0].num_negatives, base.align[0].beta
    for rate in (1e-5, 1e-4):
        want = {("softmax_dpo", negatives, 0.1, rate), ("softmax_dpo", negatives, 1.0, rate)}
        want |= {("softmax", negatives, beta, rate), ("dpo", 1, beta, rate)}
        assert {arm for arm in found if arm[-1] == rate} == want
    assert len({a.name for a in arms(base)}) == len(preferences) + 2


def test_the_shipped_recipe_has_room_for_its_arms():
    recipe = budget_recipe(base_recipe(BUDGET), 10_000)
    assert recipe.data.candidates.size > max(a.num_negatives for a in recipe.align)
    assert recipe.evaluate.split == "validation"


def test_every_title_of_the_log_is_a_target_of_the_model_that_sft_starts_from():
    recipe = sequences_recipe(base_recipe(BUDGET))
    assert not load_template(recipe.model.templates[0], domain="movies").shows_candidates
    assert recipe.sft.rows is None
    assert recipe.align == []
    assert load_template(base_recipe(BUDGET).model.templates[0], domain="movies").shows_candidates


def test_questions_go_on_with_the_weights_and_layers_of_the_model_that_has_learnt_the_log(tmp_path):
    fewer = base_recipe(BUDGET, None, ["model.layers=[0, 29]", "model.random_weights=true"])
    assert sequences_recipe(fewer).model.layers == budget_recipe(fewer, 300).model.layers == [0, 29]
    model = budget_recipe(fewer, 300, tmp_path).model
    assert (model.name, model.layers, model.random_weights) == (str(tmp_path), None, False)


def test_texts_count_where_all_examples_have_one():
    frame = pl.DataFrame(
        {
            "row": [0, 1],
            "user_id": ["u", "v"],
            "target": ["a", "b"],
            "candidates": [["a", "b"], ["a", "b"]],
            "scores": [[1.0, 0.0], [1.0, 0.0]],
            "rank": [1, 2],
            "tied": [1, 1],
            "listed": [2, 2],
            "generated": ["A", "?"],
            "choice": ["a", None],
        }
    )
    silent = frame.with_columns(generated=pl.Series([None, "?"]))
    values = values_of({"sft": [frame, frame], "dpo": [silent]}, [1])
    np.testing.assert_array_equal(values["sft"]["gen_hr@1"], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(values["sft"]["valid_ratio"], [[1, 0], [1, 0]])
    assert "gen_hr@1" not in values["dpo"]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.009, 0.009, True), (-0.02, 0.0, False), (0.001, 0.011, False)]
)
def test_equivalent_is_an_interval_within_the_margin(low, high, expected):
    assert is_equivalent(Interval((low + high) / 2, low, high, 9, 9)) is expected


def test_the_whole_study(base, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "BUDGETS", [4, 8])
    monkeypatch.setattr(budget, "ARM_ROWS", 4)
    monkeypatch.setattr(budget, "RATES", (1e-4,))
    summary = carry_out(BUDGET, base, [0], tmp_path)
    rows = {(r["rows"], r["variant"], r["against"]) for r in summary["tables"]["table"]}
    assert {("4", "s-dpo-beta1-1e-4", CONTROL), ("8", "softmax-1e-4", CONTROL)} <= rows
    assert {r["quantity"] for r in summary["tables"]["table"]} >= {"gen_hr@1", "valid_ratio", "hr@1"}
    assert "popularity" in {r["variant"] for r in summary["tables"]["table"]}  # by its scores
    folder = tmp_path / "runs/budget-seed-0"
    assert (folder / START / "config.json").is_file()
    assert all(open_run(folder / rows).recipe.model.name == str(folder / START) for rows in ("4", "8"))
    assert any(fact.startswith("8 rows. HR@1 generated: the largest difference from") for fact in summary["facts"])
