"""Tables for people and machines hold the same numbers; facts are computed, not told."""

import numpy as np
import pytest

from prefrec.report.wording import interval_ends, number
from prefrec_lab.study_tools.measure import measure
from prefrec_lab.study_tools.tables import facts_of, results_table

USERS = [f"u{i}" for i in range(40)]


@pytest.fixture
def measured():
    """`good` beats `s-dpo` on every row, `same` equals it up to noise."""
    rng = np.random.default_rng(0)
    base, noise = rng.random((2, 40)) / 2, rng.normal(size=(2, 40)) / 10
    values = {"s-dpo": base, "good": base + 0.3, "same": base + noise - noise.mean()}
    return measure({n: {"hr@1": v, "mrr": v / 2} for n, v in values.items()}, USERS, baseline="s-dpo")


def test_both_forms_hold_the_same_numbers(measured):
    table = results_table(measured, settings={"good": {"N": 3}})
    assert table.grid.columns == ["N", "HR@1", "MRR", "HR@1 − S-DPO’s"]
    rows = {name: cells for name, cells, _ in table.grid.rows}
    assert list(rows) == ["S-DPO", "good", "same"]
    for variant, shown in (("s-dpo", "S-DPO"), ("good", "good"), ("same", "same")):
        (row,) = table.frame.filter(variant=variant, quantity="hr@1").to_dicts()
        interval = measured.intervals[variant]["hr@1"]
        assert (row["mean"], row["low"], row["high"], row["n"]) == (interval.mean, interval.low, interval.high, 40)
        assert (row["seed_0"] + row["seed_1"]) / 2 == pytest.approx(interval.mean)
        assert rows[shown][1].text == number(interval.mean)
        assert rows[shown][1].small == (interval_ends(interval),)
        assert row["N"] == (3 if variant == "good" else None)
    assert [rows[r][3].style for r in ("good", "same")] == ["best", "weak"]
    assert rows["S-DPO"][3].text == "–"
    (row,) = table.frame.filter(variant="good", quantity="mrr").to_dicts()
    assert row["difference"] == pytest.approx(0.15)
    assert row["against"] == "s-dpo"


def test_a_seed_without_a_difference_is_neither_higher_nor_lower():
    base = np.zeros((3, 40))
    lower = base - np.array([[0.0], [0.1], [0.1]])
    measured = measure({"a": {"hr@1": base}, "b": {"hr@1": lower}}, USERS, baseline="a")
    assert any("b (lower in 2 of 3 seeds)" in fact for fact in facts_of(measured))
