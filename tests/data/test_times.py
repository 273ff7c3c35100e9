"""The end of a log."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data.times import log_end

DAY = 86_400


def slow_end(times: list[int]) -> int:
    """The end of a log by its rule: drop lone times one by one, the last ones first."""
    may_be_lone = max(1, len(times) // 1000) if len(times) >= 100 else 0
    bulk = times[: len(times) - may_be_lone]
    newer = bulk[len(bulk) // 2 :]
    usual = max([b - a for a, b in pairwise(newer)], default=0)
    end = times[-1]
    for kept in range(len(times) - 1, len(bulk) - 1, -1):
        gap = times[kept] - times[kept - 1]
        if gap > 30 * DAY and gap > 3 * usual:
            end = times[kept - 1]
    return end


gaps = st.one_of(st.integers(0, 2 * DAY), st.sampled_from([0, DAY, 29 * DAY, 31 * DAY, 365 * DAY]))


@given(
    first=st.integers(0, 2_000_000_000),
    drawn=st.lists(gaps, min_size=1, max_size=30),
    last=gaps,
    copies=st.integers(1, 60),
)
def test_the_end_of_a_log_equals_a_loop_over_its_rule(first, drawn, last, copies):
    times = np.cumsum([first, *(drawn * copies), last, *drawn[:1]])
    assert log_end(times) == slow_end(times.tolist())


@pytest.mark.parametrize(
    ("count", "gap", "after", "lone"),
    [
        (5000, 3600, [31], True),  # an order every hour, and one a month later
        (5000, 3600, [365, 730, 3650, 3651, 3652], True),  # one in a thousand may be lone
        (5000, 3600, [365, 366, 367, 368, 369, 370], False),  # but not more
        (5000, 3600, [29], False),
        (150, 11 * DAY, [31], False),  # where orders are rare, a month without any is no surprise
        (150, 11 * DAY, [34], True),
        (98, 3600, [365], False),  # too few to tell
        (99, 3600, [365], True),
    ],
)
def test_the_end_of_a_log_is_before_lone_times(count, gap, after, lone):
    bulk = 1_000_000_000 + gap * np.arange(count)
    times = np.concatenate([bulk, bulk[-1] + DAY * np.array(after)])
    assert log_end(times) == (bulk[-1] if lone else times[-1])


def test_the_end_of_a_clean_log_is_its_maximum():
    rng = np.random.default_rng(0)
    for scale in (60, DAY, 20 * DAY):
        times = np.cumsum(rng.exponential(scale, 5000).astype(np.int64)) + 1_000_000_000
        assert log_end(times) == times.max()
    assert log_end(np.array([7])) == 7
