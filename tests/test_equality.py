"""Results are equal by their values: NaN, arrays and frames included, on every version of Python."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Catalogue
from prefrec.equality import ByValue, same
from prefrec.evaluation.intervals import PairedDifference
from prefrec.evaluation.outcome import Comparison
from prefrec.rankers import Recommendation

NAN = float("nan")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(width=16) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_is_the_same_as_its_copy(value):
    def copied(v):
        if isinstance(v, list):
            return [copied(x) for x in v]
        if isinstance(v, dict):
            return {name: copied(x) for name, x in v.items()}
        return float(repr(v)) if isinstance(v, float) else v  # another NaN

    assert same(value, copied(value))
    assert not same(value, [value])


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        (NAN, math.nan, True),
        (NAN, 0.0, False),
        ({"a": NAN}, {"a": NAN}, True),
        ({"a": NAN}, {"b": NAN}, False),
        ([1.0, NAN], (1.0, NAN), False),
        ([1.0], [1.0, NAN], False),
        (np.array([1.0, NAN]), np.array([1.0, NAN]), True),
        (np.array([1.0, NAN]), np.array([1.0, 2.0]), False),
        (np.array(["a"]), np.array(["a"]), True),
        (pl.DataFrame({"a": [1, None]}), pl.DataFrame({"a": [1, None]}), True),
        (pl.DataFrame({"a": [1]}), pl.DataFrame({"b": [1]}), False),
    ],
)
def test_values_that_are_the_same(first, second, equal):
    assert same(first, second) is equal


def test_results_without_a_p_value_are_equal():
    args = {"ranker": "a", "against": "b", "metric": "hr@1", "mean": 0.1, "low": NAN, "high": NAN, "n": 1, "users": 1}
    assert Comparison(**args) == Comparison(**args | {"low": math.nan})
    assert Comparison(**args) != Comparison(**args | {"mean": 0.2})
    assert PairedDifference(0.1, 0.0, 0.2, 3, 3) != Comparison(**args)


def test_answers_and_catalogues_are_equal_by_their_arrays_and_frames():
    def answer(score):
        return Recommendation(["a"], np.array([score], dtype=np.float32), True, "exact")

    assert answer(1.0) == answer(1.0)
    assert answer(1.0) != answer(2.0)
    catalogues = [Catalogue(pl.DataFrame({"item_id": ["a"], "title": [title]})) for title in ("Heat", "Heat", "Dune")]
    assert catalogues[0] == catalogues[1] != catalogues[2]


def _dataclasses():
    """Yield all dataclasses of the four packages."""
    for package in map(importlib.import_module, ("prefrec", "prefrec_server", "prefrec_systems", "prefrec_lab")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Locust, which the clients of the load test import, patches the whole process; they have no dataclass.
            if module.name.endswith(("__main__", ".load_clients")):
                continue
            for made in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(made) and "__dataclass_fields__" in vars(made) and made.__module__ == module.name:
                    yield made


ARRAYS = r"NDArray|DataFrame|Tensor|csr_array|Floats|Ints|Mask|Features"
COMPARED_ELEMENTWISE = re.compile(rf"^(?!Callable).*\b({ARRAYS})\b")


def test_no_dataclass_compares_arrays_or_frames_by_the_generated_equality():
    found = list(_dataclasses())
    assert len(found) > 100
    wrong = [
        f"{made.__module__}.{made.__name__}.{f.name}"
        for made in found
        for f in dataclasses.fields(made)
        if made.__dataclass_params__.eq and f.compare and COMPARED_ELEMENTWISE.search(str(f.type))
    ]
    assert not wrong


def test_results_share_one_equality():
    assert all(made.__eq__ is ByValue.__eq__ for made in _dataclasses() if issubclass(made, ByValue))
