"""The budget curve: the same examples and the same SFT model for all arms, and the whole study."""

import pytest

from prefrec.errors import ConfigError
from prefrec.evaluation import Interval
from prefrec.intake import prepare
from prefrec.pipeline.opened import open_run
from prefrec.prompts import load_template
from prefrec.stages.training_rows import alignment_rows
from prefrec_lab.studies import budget
from prefrec_lab.studies.budget import BUDGET, CONTROL, DOSE, MARGIN, Dose, arms, budget_recipe
from prefrec_lab.study_tools.carry_out import base_recipe, carry_out


@pytest.fixture(scope="module")
def base(base):
    """The tiny recipe, with histories and no candidates in the prompt."""
    raw = base.model_dump(mode="json")
    raw["model"]["templates"] = ["history"]
    raw["sft"] |= {"rows": None}
    raw["align"] = [raw["align"][0] | {"rows": None, "negatives_from": "list"}]
    raw["evaluate"] |= {"generate_rows": 0}
    raw["data"]["candidates"]["size"] = 10
    return type(base).model_validate(raw)


@pytest.mark.parametrize("users", [12, None])
def test_all_arms_read_the_same_examples(base, users):
    recipe, data = budget_recipe(base, users, Dose(15, (1e-5, 1e-4))), prepare(base.data)
    assert recipe.sft.rows == users
    read = [{id_of(e) for e in alignment_rows(data, arm, 0)} for arm in recipe.align]
    assert len(read[0]) == 15
    assert all(own == read[0] for own in read)


def id_of(example):
    return example.user_id, example.target, len(example.history)


def test_all_objectives_have_the_same_rates_and_the_control_that_of_sft_too(base):
    *others, control = arms(base, DOSE)
    assert (control.name, control.loss, control.learning_rate) == (CONTROL, "sft", base.sft.learning_rate)
    found = {(a.loss, a.num_negatives, a.beta, a.learning_rate) for a in others}
    negatives, beta = base.align[0].num_negatives, base.align[0].beta
    for rate in (1e-5, 1e-4):
        want = {("softmax_dpo", negatives, 0.1, rate), ("softmax_dpo", negatives, 1.0, rate)}
        want |= {("softmax", negatives, beta, rate), ("dpo", 1, beta, rate), ("sft", 1, beta, rate)}
        assert {arm for arm in found if arm[-1] == rate} == want
    assert len({a.name for a in arms(base, DOSE)}) == len(others) + 1


def test_the_shipped_recipe_shows_no_candidates_and_reads_whole_histories():
    recipe = budget_recipe(base_recipe(BUDGET), None)
    assert recipe.sft.rows is None
    assert recipe.data.candidates.size > max(a.num_negatives for a in recipe.align)
    assert recipe.evaluate.split == "validation"
    assert not load_template(recipe.model.templates[0], domain="movies").shows_candidates


@pytest.mark.parametrize(
    ("field", "changes", "message"),
    [
        ("sft", None, r"^sft: .*no SFT: add sft$"),
        ("evaluate", {"ks": [3]}, r"^evaluate\.ks: the study compares by HR@1: add 1$"),
    ],
)
def test_what_the_study_cannot_measure_is_refused(base, field, changes, message):
    raw = base.model_dump(mode="json")
    raw[field] = None if changes is None else raw[field] | changes
    with pytest.raises(ConfigError, match=message):
        budget_recipe(type(base).model_validate(raw), None)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.009, 0.009, True), (-0.02, 0.0, False), (0.001, 0.011, False)]
)
def test_equivalent_is_an_interval_within_the_margin(low, high, expected):
    assert MARGIN.contains(Interval((low + high) / 2, low, high, 9, 9)) is expected


def test_the_whole_study(base, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "BUDGETS", [4, None])
    monkeypatch.setattr(budget, "DOSE", Dose(4, (1e-4,)))
    summary = carry_out(BUDGET, base, [0], tmp_path)
    table = summary["tables"]["table"]
    hit_rates = [r for r in table if r["quantity"] == "hr@1"]
    rows = {(r["histories"], r["variant"]): r for r in hit_rates}
    for users in ("4", "all"):
        control = rows[users, "s-dpo-beta1-1e-4"]["against"]
        assert control == rows[users, "softmax-1e-4"]["against"]
        assert rows[users, control]["mean"] == max(rows[users, name]["mean"] for name in (CONTROL, f"{CONTROL}-1e-4"))
    assert list(summary["tables"]) == ["table"]  # the tiny recipe has no NDCG@10
    assert "popularity" in {r["variant"] for r in table}  # by its scores
    folder = tmp_path / "runs/budget-seed-0"
    assert [open_run(folder / users).recipe.sft.rows for users in ("4", "all")] == [4, None]
    assert any(f.startswith("SFT on all histories. HR@1: the largest difference") for f in summary["facts"])
