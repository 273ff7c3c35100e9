"""Curves of two gains: what one loses while the other stays."""

import numpy as np
import pytest

from prefrec_lab.curves import Curve


def made(liked: list[float], disliked: list[float]) -> Curve:
    """A curve of one example of each kind."""
    return Curve(np.array([liked]), np.array([disliked]))


@pytest.mark.parametrize(
    ("liked", "reach", "summary"),
    [
        ([0.4, 0.6, 0.5, 0.3, 0.1], (2, 0.5), 0.45),  # between the third and the fourth
        ([0.4, 0.3, 0.2, 0.1, 0.0], (0, 0.0), 0.9),  # any step loses: nothing is gained
        ([0.4, 0.5, 0.5, 0.5, 0.5], (4, 0.0), 0.1),  # no step loses
        ([0.4, 0.3, 0.5, 0.3, 0.3], (2, 0.5), 0.45),  # the largest one counts
    ],
)
def test_summary_is_where_liked_gains_are_those_of_the_base(liked, reach, summary):
    curve = made(liked, [0.9, 0.8, 0.5, 0.4, 0.1])
    assert curve.reach() == pytest.approx(reach)
    assert curve.summary() == pytest.approx(summary)
    assert curve.values().mean() == pytest.approx(summary)


def drawn(rows: int, peak: float, fall: float, rng: np.random.Generator) -> np.ndarray:
    """Gains of examples, whose mean rises to a peak and falls."""
    lambdas = np.arange(6)
    mean = 0.4 + peak * lambdas - fall * lambdas**2
    return mean + rng.normal(0, 0.2, (rows, 1)) + rng.normal(0, 0.1, (rows, 6))


def test_values_are_the_first_order_of_what_an_example_changes():
    rng = np.random.default_rng(0)
    liked, disliked = drawn(300, 0.1, 0.03, rng), drawn(200, -0.05, 0.0, rng)
    curve = Curve(liked, disliked)
    last, part = curve.reach()
    assert 0 < last < 5
    assert 0 < part < 1
    values = curve.values()
    influence = values - curve.summary()
    # Slow twin: leave out one example of its kind at a time. The mean over both kinds has the weights of their sizes.
    for n in range(0, 500, 7):
        if n < 300:
            without, size = Curve(np.delete(liked, n, axis=0), disliked), 300
            change = values[n] / 500
        else:
            without, size = Curve(liked, np.delete(disliked, n - 300, axis=0)), 200
            change = (values[n] * 200 / 500 - curve.summary()) / 200
        assert without.summary() - curve.summary() == pytest.approx(-change * size / (size - 1), abs=3e-5)
    assert influence.shape == (500,)


@pytest.mark.parametrize("seed", range(5))
def test_summary_is_that_of_a_slow_search_along_the_curve(seed):
    rng = np.random.default_rng(seed)
    liked, disliked = drawn(50, 0.1, 0.03, rng), drawn(30, -0.05, 0.0, rng)
    # Slow twin: walk over many points between the λ, and keep the last one that loses no liked gain.
    points = np.linspace(0, 5, 50_001)
    of_liked, of_disliked = (np.interp(points, range(6), own.mean(axis=0)) for own in (liked, disliked))
    last = max(n for n in range(len(points)) if of_liked[n] >= of_liked[0])
    assert last > 0
    assert Curve(liked, disliked).summary() == pytest.approx(of_disliked[last], abs=1e-5)
