"""Read Parquet files that may be damaged, or larger than they look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefrec.data.parquet_footer import claimed_values

PARQUET = (".parquet", ".pq")
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, UnicodeError)
"""Errors that `read_parquet` raises on a damaged file."""
# Rows of Parquet that are decoded together, bytes of a code, and the size below which texts are read as codes.
_BATCH, _CODE, _SMALL = 1 << 17, 4, 64 << 20
UNPACKED, RATIO = 512 << 20, 100
"""Bytes that any compressed file may have when it is unpacked, and the multiple of its size that it may have."""
Shrink = Callable[[pl.LazyFrame], pl.LazyFrame]
"""Function that selects the needed columns of a table and converts them to types that take less memory."""


def read_parquet(path: Path, shrink: Shrink = lambda table: table) -> pl.DataFrame:
    """Read an untrusted Parquet file; raise one of `UNREADABLE` if it is damaged, or larger than `most_unpacked`.

    `shrink` is applied in batches.
    """
    most, unpacked, frames = most_unpacked(path), 0, []
    too_large = OSError(f"unpacked it has more than {mib(most)}; if you trust it, divide it into several files")
    # Arrow checks every offset and text; polars' decoder crashes the process on some damaged files. With
    # `pre_buffer`, Arrow would hold the whole file in memory.
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = [file.metadata.schema.column(j) for j in range(file.metadata.num_columns)]
        values, rows = claimed_values(path), file.metadata.num_rows
        # Arrow would allocate memory for as many values as a column claims to have.
        for j, column in enumerate(columns):
            claimed = sum(group[j] if j < len(group) else -1 for group in values)
            if column.max_repetition_level == 0 and claimed != rows:
                raise OSError(f"column {column.path} claims {claimed} values in {rows} rows")
        if min(map(min, values), default=0) < 0 or _CODE * sum(map(sum, values)) > most:
            raise too_large
        schema = file.schema_arrow
    # A kilobyte can hold a text of a megabyte a thousand times. So texts are read as codes until their size is known;
    # not in large files, where this would take long.
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    with pq.ParquetFile(
        path, pre_buffer=False, read_dictionary=texts if path.stat().st_size < _SMALL else []
    ) as file:
        for batch in file.iter_batches(_BATCH):
            unpacked += sum(map(_plain_bytes, batch.columns))
            if unpacked > most:
                raise too_large
            frames.append(shrink(_checked(pa.Table.from_batches([batch]).cast(schema)).lazy()).collect())
        frames = frames or [_checked(file.read().cast(schema))]
    return pl.concat(frames, rechunk=False)


def _plain_bytes(column: pa.Array) -> int:
    """Return the bytes of a column of texts when they are no longer codes, or else of the column as it is."""
    column.validate(full=True)
    if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
        return pc.sum(pc.binary_length(column.dictionary).take(column.indices).cast(pa.int64())).as_py() or 0
    return column.nbytes


def _checked(table: pa.Table) -> pl.DataFrame:
    table.validate(full=True)
    return cast(pl.DataFrame, pl.from_arrow(table))


def most_unpacked(path: Path) -> int:
    """Return the most bytes that a file may have when it is unpacked: a small one could fill the memory."""
    return max(UNPACKED, RATIO * path.stat().st_size)


def mib(size: int) -> str:
    """Return a number of bytes as text, in MiB."""
    return f"{size >> 20:,} MiB"
