"""Fixtures: small made-up files of a shop."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Writes a small log and catalogue as CSV: `users` people take some of `items` items, one a second."""

    def write(users: int = 8, items: int = 40, length: int = 8) -> dict[str, Path]:
        taken = [(u, n) for u in range(users) for n in range(length)]
        log = [(f"u{u}", f"i{(u * 3 + n * 5) % items}", 1_000 + 10 * n + u) for u, n in taken]
        paths = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
        pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(paths["interactions"])
        catalogue = [(f"i{i}", f"Thing {i}") for i in range(items)]
        pl.DataFrame(catalogue, schema=["item_id", "title"], orient="row").write_csv(paths["items"])
        return paths

    return write


@pytest.fixture
def paths(shop) -> dict[str, Path]:
    """The files of the usual shop."""
    return shop()
