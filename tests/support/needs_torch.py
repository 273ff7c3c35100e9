"""Tests in an environment without torch: those whose modules import it are left out, and its fixtures skip."""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

IS_INSTALLED = find_spec("torch") is not None
FIXTURES = (
    *("model", "recipe", "data", "base", "rated", "rated_recipe", "place", "adapter", "adapted_run"),
    *("run_with_rankers", "bpe_tokenizer", "sentencepiece_tokenizer"),
)
"""Fixtures of `lm_fixtures`."""
_IMPORTED = re.compile(r"^(?:from|import) ([\w.]+)(?: import ([\w, ]+))?", re.MULTILINE)


def absent(name: str) -> Callable[..., object]:
    """A fixture that skips its test."""

    @pytest.fixture(name=name, scope="session")
    def skip() -> None:
        pytest.skip("needs torch: pip install 'prefrec[lm]'")

    return skip


def is_missing_for(path: Path) -> bool:
    """True for a file of tests that cannot be imported here, because torch or another package is absent."""
    return not IS_INSTALLED and path.suffix == ".py" and path.name.startswith("test_") and _needs_more(path)


@cache
def _needs_more(path: Path) -> bool:
    """True if a file, or one of this repository that it imports, imports a package that is not installed."""
    for module, names in _IMPORTED.findall(path.read_text(encoding="utf-8")):
        inner = [f"{module}.{name.strip()}" for name in names.split(",") if name]
        for imported in (module, *inner):
            origin = _origin(imported)
            if origin is None and imported == module:
                return True
            if origin and "site-packages" not in origin and Path(origin).suffix == ".py" and origin != str(path):
                is_ours = module.split(".")[0].startswith("prefrec") or Path(origin).parent.name == "support"
                if is_ours and _needs_more(Path(origin)):
                    return True
    return False


def _origin(module: str) -> str | None:
    try:
        spec = find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return (spec.origin or "built-in") if spec else None
