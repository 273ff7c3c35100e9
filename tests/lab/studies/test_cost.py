"""The Pareto front against a slow twin, and seconds that add up."""

from shutil import copytree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.errors import DataError
from prefrec.evaluation import Interval
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec_lab.studies.carry_out import analyse_runs, carry_out
from prefrec_lab.studies.cost import COST, pareto, training_memory, training_seconds

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


@given(POINTS)
def test_no_point_of_the_front_is_beaten(found):
    points = {str(i): (float(x), Interval(float(y), y - 1, y + 1, 9, 9)) for i, (x, y) in enumerate(found)}

    def beaten(name):
        x, y = points[name][0], points[name][1].mean
        return any(
            (p[0] <= x and p[1].mean >= y) and (p[0] < x or p[1].mean > y) for n, p in points.items() if n != name
        )

    front = pareto(points)
    assert not any(beaten(n) for n in front)
    kept = {(points[n][0], points[n][1].mean) for n in front}
    assert kept == {(p[0], p[1].mean) for n, p in points.items() if not beaten(n)}
    assert [points[n][0] for n in front] == sorted(points[n][0] for n in front)


@pytest.fixture(scope="module")
def summary(base, place):
    return carry_out(COST, base, [0], place)


def test_seconds_are_those_of_all_stages_before(summary, place):
    folder = place / "runs" / "cost-seed-0"
    states = [read_json(folder / part / "stage.json") for part in ("sft", "align/dmpo")]
    sft, dmpo = (s["seconds"] for s in states)
    seconds = {r["variant"]: r["seconds in all"] for r in summary["tables"]["table"]}
    assert seconds["sft"] == sft
    assert seconds["dmpo"] == pytest.approx(sft + dmpo, abs=0.06)
    assert list(seconds) == ["sft", "dpo", "dpo-pairs", "dmpo", "bpr", "softmax", "s-dpo"]
    assert training_seconds(open_run(folder), "nothing") is None


def test_memory_is_the_most_of_any_stage(summary, place):
    folder = place / "runs" / "cost-seed-0"
    sft, dpo = (read_json(folder / part / "stage.json") for part in ("sft", "align/dpo"))
    row = next(r for r in summary["tables"]["table"] if r["variant"] == "dpo")
    assert row["peak GiB"] == pytest.approx(max(sft["peak_bytes"], dpo["peak_bytes"]) / 2**30, abs=0.006)
    assert row["CPU seconds in all"] == pytest.approx(sft["cpu_seconds"] + dpo["cpu_seconds"], abs=0.06)
    assert min(sft["cpu_seconds"], dpo["cpu_seconds"]) > 0
    assert row["own peak GiB"] == pytest.approx(dpo["peak_bytes"] / 2**30, abs=0.006)
    assert row["own CPU seconds"] == pytest.approx(dpo["cpu_seconds"])
    assert row["own seconds"] == pytest.approx(dpo["seconds"])


def test_runs_that_did_not_note_memory_have_none(summary, place, tmp_path):
    copytree(place / "runs" / "cost-seed-0", tmp_path / "old")
    for state in (tmp_path / "old").rglob("stage.json"):
        write_json(state, {k: v for k, v in read_json(state).items() if k not in ("cpu_seconds", "peak_bytes")})
    again = analyse_runs(COST, [tmp_path / "old"], tmp_path / "out")
    for column in ("peak GiB", "own peak GiB", "own CPU seconds"):
        assert {r[column] for r in again["tables"]["table"]} == {None}
    assert again["plots"] == ["hr-1-time"]
    assert training_memory(open_run(tmp_path / "old"), "sft") is None


def test_facts_name_the_front(summary):
    assert summary["facts"][0].startswith("HR@1: not beaten by a model that takes less time, in the mean: SFT (")
    assert summary["plots"] == ["hr-1-time", "hr-1-memory"]


def test_a_run_without_a_trained_model(base, tmp_path):
    raw = base.model_dump(mode="json") | {"sft": None, "align": []}
    run_recipe(Recipe.model_validate(raw), tmp_path / "run", until="evaluate")
    with pytest.raises(DataError, match=r"run: no trained language model whose seconds are known"):
        analyse_runs(COST, [tmp_path / "run"], tmp_path)


def test_a_run_that_there_is(summary, place, tmp_path):
    again = analyse_runs(COST, [place / "runs" / "cost-seed-0"], tmp_path)
    assert again["tables"] == summary["tables"]
