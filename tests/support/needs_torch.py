"""Tests in an environment without the extra lm: files that need its packages are skipped, and so are its fixtures."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest

IS_INSTALLED = find_spec("torch") is not None
FIXTURES = (
    *("model", "recipe", "data", "base", "rated", "rated_recipe", "place", "adapter", "adapted_run"),
    *("run_with_rankers", "bpe_tokenizer", "sentencepiece_tokenizer"),
)
"""Fixtures of `lm_fixtures`."""
REASON = "needs more than the core: pip install '.[lm]'"


def absent(name: str) -> Callable[..., object]:
    """A fixture that skips its test."""

    @pytest.fixture(name=name, scope="session")
    def skip() -> None:
        pytest.skip(REASON)

    return skip


class CoreModule(pytest.Module):
    """A file of tests that is skipped if it imports a package that is not installed."""

    def _getobj(self) -> object:
        try:
            return super()._getobj()
        except self.CollectError as e:
            if _missing(e) not in ("", "prefrec"):
                pytest.skip(REASON, allow_module_level=True)
            raise


def _missing(error: BaseException | None) -> str:
    """The package whose absence caused an error; "" if the cause was another one."""
    while error and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    return (error.name or "").partition(".")[0] if error else ""
