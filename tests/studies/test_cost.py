"""The Pareto front against a slow twin, and seconds that add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation import Interval
from prefrec.pipeline.stage import read_json
from prefrec.studies.carry_out import analyse_runs, carry_out
from prefrec.studies.cost import COST, pareto, training_seconds
from prefrec.studies.runs import open_run

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
    folder = place / "runs" / "seed-0"
    sft, dmpo = (read_json(folder / part / "stage.json")["seconds"] for part in ("sft", "align/dmpo"))
    seconds = {r["variant"]: r["seconds in all"] for r in summary["tables"]["table"]}
    assert seconds["sft"] == sft
    assert seconds["dmpo"] == pytest.approx(sft + dmpo, abs=0.06)
    assert list(seconds) == ["sft", "dpo", "dpo-pairs", "dmpo", "bpr", "softmax", "s-dpo"]
    assert training_seconds(open_run(folder), "nothing") is None


def test_facts_name_the_front(summary):
    assert summary["facts"][0].startswith("HR@1: not beaten by a faster model, in the mean: SFT (")
    assert summary["plots"] == ["hr-1"]


def test_a_run_that_there_is(summary, place, tmp_path):
    again = analyse_runs(COST, [place / "runs" / "seed-0"], tmp_path)
    assert again["tables"] == summary["tables"]
