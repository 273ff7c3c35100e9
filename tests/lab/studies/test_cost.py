"""The Pareto front against a slow twin, and seconds that add up."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation import Interval
from prefrec.files import read_json
from prefrec.pipeline.opened import open_run
from prefrec.recipe import Recipe
from prefrec_lab.studies import cost
from prefrec_lab.studies.alignments import vary_loss
from prefrec_lab.studies.cost import COST, pareto, stages_of, training_seconds
from prefrec_lab.study_tools.carry_out import carry_out
from prefrec_lab.study_tools.study import with_alignments

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


@given(POINTS)
def test_no_point_of_the_front_is_beaten(found):
    points = {str(i): (float(x), Interval(float(y), y - 1, y + 1, 9, 9)) for i, (x, y) in enumerate(found)}
    places = {name: (x, interval.mean) for name, (x, interval) in points.items()}

    def beaten(name):
        x, y = places[name]
        return any((a <= x and b >= y) and (a < x or b > y) for n, (a, b) in places.items() if n != name)

    front = pareto(points)
    assert not any(beaten(n) for n in front)
    assert {places[n] for n in front} == {place for n, place in places.items() if not beaten(n)}
    assert [places[n][0] for n in front] == sorted(places[n][0] for n in front)


@pytest.fixture(scope="module")
def summary(base, place):
    def two_losses(recipe, data):
        return with_alignments(recipe, [a for a in vary_loss(recipe, data).align if a.name in ("dpo", "dmpo")])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "vary_loss", two_losses)
        return carry_out(COST, base, [0], place)


def test_seconds_are_those_of_all_stages_before(summary, place):
    folder = place / "runs" / "cost-seed-0"
    sft, dmpo = (read_json(folder / part / "stage.json")["seconds"] for part in ("sft", "align/dmpo"))
    seconds = {r["variant"]: r["seconds in all"] for r in summary["tables"]["table"]}
    assert seconds["sft"] == sft
    assert seconds["dmpo"] == pytest.approx(sft + dmpo, abs=0.06)
    assert list(seconds) == ["sft", "dpo", "dmpo"]
    assert training_seconds(open_run(folder), "nothing") is None


def test_an_alignment_may_start_from_an_earlier_one(base):
    raw = base.model_dump(mode="json")
    raw["align"] = [raw["align"][0] | {"name": name} for name in "abc"]
    raw["align"][1]["start"], raw["align"][2]["start"] = "a", "b"
    run = SimpleNamespace(recipe=Recipe.model_validate(raw))
    assert [stages_of(run, name) for name in ("sft", "a", "c")] == [["sft"], ["sft", "a"], ["sft", "a", "b", "c"]]
    run = SimpleNamespace(recipe=Recipe.model_validate(raw | {"sft": None}))
    assert [stages_of(run, name) for name in ("a", "b")] == [["a"], ["a", "b"]]


def test_memory_is_the_most_of_any_stage(summary, place):
    folder = place / "runs" / "cost-seed-0"
    sft, dpo = (read_json(folder / part / "stage.json") for part in ("sft", "align/dpo"))
    row = next(r for r in summary["tables"]["table"] if r["variant"] == "dpo")
    assert row["peak GiB"] == pytest.approx(max(sft["peak_bytes"], dpo["peak_bytes"]) / 2**30, abs=0.006)
    assert row["CPU seconds in all"] == pytest.approx(sft["cpu_seconds"] + dpo["cpu_seconds"], abs=0.06)
    assert min(sft["cpu_seconds"], dpo["cpu_seconds"]) > 0
    assert row["own peak GiB"] == pytest.approx(dpo["peak_bytes"] / 2**30, abs=0.006)
    assert (row["own CPU seconds"], row["own seconds"]) == pytest.approx((dpo["cpu_seconds"], dpo["seconds"]))
