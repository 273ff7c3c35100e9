"""A cache of title vectors, shared by all runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.errors import StorageError
from prefrec.files import cache_dir, write_whole

MOST_BYTES = 2 << 30
"""Most bytes to keep, over all encoders; the oldest files are deleted first."""


class TitleStore:
    """A folder of Parquet files with titles and their vectors, one file per call of `write`.

    `key` identifies everything but the title that a vector depends on. Which titles were encoded together changes
    vectors only by rounding. Damaged files are ignored, and a file that cannot be written is skipped.
    """

    def __init__(self, key: str, folder: Path | None = None) -> None:
        self.root = folder or cache_dir() / "titles"
        self.folder = self.root / key[:32]

    def read(self, titles: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return title → vector [H], of the titles in the cache."""
        wanted, known = pl.Series(sorted(set(titles)), dtype=pl.String), dict[str, NDArray[np.float32]]()
        for path in self.folder.glob("*.parquet"):
            with suppress(pl.exceptions.PolarsError, OSError):
                stored = pl.read_parquet(path).filter(pl.col("title").is_in(wanted.implode()))
                known |= zip(stored["title"].to_list(), stored["vector"].to_numpy(), strict=True)
        return known

    def write(self, titles: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Write the vectors [T, H] of T titles."""
        form = pl.Array(pl.Float32, vectors.shape[1])
        table = pl.DataFrame({"title": titles, "vector": pl.Series(vectors.astype(np.float32), dtype=form)})
        with suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{secrets.token_hex(8)}.parquet", table.write_parquet)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        files = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self.root.glob("*/*.parquet"))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= size
