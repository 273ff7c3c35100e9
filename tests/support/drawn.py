"""Inputs that hypothesis draws for the soak and for its short forms in the tests."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy


def try_drawn(check: Callable[[Any], None], strategy: SearchStrategy[Any], examples: int, random: int | None) -> None:
    """Call `check` with inputs that `random` seeds, or always the same; raise its error for the shortest input."""
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    tried = settings(max_examples=examples, derandomize=random is None, **quiet)(given(strategy)(check))
    (tried if random is None else seed(random)(tried))()
