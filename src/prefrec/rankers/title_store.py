"""Vectors of titles that are kept between runs, by encoder and title."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from prefrec.errors import StorageError
from prefrec.files import cache_dir, write_whole

MOST_BYTES = 2 << 30
"""Bytes that are kept of all encoders together; the oldest files go first."""


class TitleStore:
    """A folder of Parquet files with titles and their vectors, one for each time that some were encoded.

    `key` stands for everything else that a vector depends on. Vectors are the same up to rounding, whichever titles
    were encoded with theirs. Files that are damaged or cannot be written are as if they were not there.
    """

    def __init__(self, key: str, folder: Path | None = None) -> None:
        self.root = folder or cache_dir() / "titles"
        self.folder = self.root / key[:32]

    def read(self, titles: Sequence[str]) -> dict[str, Tensor]:
        """Return title → vector [H] of those titles that are kept."""
        wanted, found = pl.Series(sorted(set(titles)), dtype=pl.String), dict[str, Tensor]()
        for path in self.folder.glob("*.parquet"):
            with suppress(pl.exceptions.PolarsError, OSError):
                some = pl.read_parquet(path).filter(pl.col("title").is_in(wanted.implode()))
                vectors = torch.from_numpy(some["vector"].to_numpy().copy())
                found |= zip(some["title"].to_list(), vectors, strict=True)
        return found

    def write(self, titles: Sequence[str], vectors: Tensor) -> None:
        """Keep the vectors [T, H] of titles."""
        form = pl.Array(pl.Float32, vectors.shape[1])
        table = pl.DataFrame({"title": titles, "vector": pl.Series(vectors.float().numpy(), dtype=form)})
        with suppress(StorageError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{secrets.token_hex(8)}.parquet", table.write_parquet)
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        facts = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self.root.glob("*/*.parquet"))
        size = sum(own for _, own, _ in facts)
        for _, own, path in facts:
            if size <= MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            size -= own
