"""Expected HR@1 among drawn candidates, against all draws one by one."""

from itertools import combinations

import polars as pl
import pytest

from prefrec_lab.trials.uniform_lists import expected_hit, hits


def every_draw(better: int, tied: int, others: int, drawn: int) -> float:
    """The mean hit over all lists: a target that is first with others has a share of it."""
    scores = [1] * better + [0] * tied + [-1] * (others - better - tied)
    lists = [*combinations(scores, drawn)]
    return sum(0.0 if max(own) > 0 else 1 / (1 + own.count(0)) for own in lists) / len(lists)


@pytest.mark.parametrize("better", range(5))
@pytest.mark.parametrize("tied", range(4))
@pytest.mark.parametrize("drawn", [1, 3])
def test_the_expectation_is_the_mean_of_all_draws(better, tied, drawn):
    assert expected_hit(better, tied, 8, drawn) == pytest.approx(every_draw(better, tied, 8, drawn))


def test_hits_are_those_of_ranks_among_all_items():
    frame = pl.DataFrame({"row": [1, 0, 2], "rank": [1, 3, 40], "tied": [0, 0, 1], "listed": [40, 40, 41]})
    assert hits(frame).tolist() == pytest.approx([20 * 19 / (39 * 38), 1.0, 0.0])
