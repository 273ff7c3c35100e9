"""Equality of results that hold NaN, arrays or frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import polars as pl


class ByValue:
    """Base of dataclasses that are equal if all their compared fields are equal (`same`).

    The equality that `dataclass` writes compares fields by `==`: from Python 3.13 two results with a NaN are never
    equal by it, and it raises an error for arrays and frames. Subclasses are therefore declared with `eq=False`.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """Return True if `other` is of the same class and its fields have the same values."""
        if type(self) is not type(other):
            return NotImplemented
        names = [f.name for f in fields(self) if f.compare]  # type: ignore[arg-type]
        return all(same(getattr(self, name), getattr(other, name)) for name in names)


def same(first: Any, second: Any) -> bool:
    """Return True if two values are equal: NaN equals NaN, arrays and frames are compared as a whole."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        has_nan = first.dtype.kind in "fc" and second.dtype.kind in "fc"
        return np.array_equal(first, second, equal_nan=has_nan)
    if isinstance(first, pl.DataFrame) and isinstance(second, pl.DataFrame):
        return first.equals(second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if type(first) is not type(second) or len(first) != len(second):
            return False
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    is_nan = isinstance(first, float) and isinstance(second, float) and first != first and second != second
    return is_nan or bool(first == second)
