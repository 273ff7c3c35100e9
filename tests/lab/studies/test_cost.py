"""The Pareto front against a slow twin, and seconds that add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.evaluation import Interval
from prefrec.files import read_json
from prefrec.pipeline.opened import open_run
from prefrec_lab.studies import cost
from prefrec_lab.studies.alignments import vary_loss
from prefrec_lab.studies.carry_out import carry_out
from prefrec_lab.studies.cost import COST, pareto, training_seconds
from prefrec_lab.studies.study import with_alignments

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
    """The study with two of its losses."""

    def two_losses(recipe, data):
        return with_alignments(recipe, [a for a in vary_loss(recipe, data).align if a.name in ("dpo", "dmpo")])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "vary_loss", two_losses)
        return carry_out(COST, base, [0], place)


def test_seconds_are_those_of_all_stages_before(summary, place):
    folder = place / "runs" / "cost-seed-0"
    states = [read_json(folder / part / "stage.json") for part in ("sft", "align/dmpo")]
    sft, dmpo = (s["seconds"] for s in states)
    seconds = {r["variant"]: r["seconds in all"] for r in summary["tables"]["table"]}
    assert seconds["sft"] == sft
    assert seconds["dmpo"] == pytest.approx(sft + dmpo, abs=0.06)
    assert list(seconds) == ["sft", "dpo", "dmpo"]
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
