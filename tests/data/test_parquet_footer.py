"""The footer of a Parquet file: as pyarrow reads it, and refused where it is damaged."""

import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefrec.data.parquet import UNREADABLE, read_parquet
from prefrec.data.parquet_footer import claimed_values

FRAME = pl.DataFrame({"s": ["a", None, "b"] * 40, "n": range(120), "l": [["x"], [], ["y", "z"]] * 40})


def _files(folder):
    path = folder / "a.parquet"
    for rows in (7, 120, 1000):
        FRAME.with_columns(r=pl.struct("s", "n"), e=pl.lit(None, pl.Boolean)).write_parquet(path, row_group_size=rows)
        yield path
        table = FRAME.to_arrow().replace_schema_metadata({"note": "x" * 500})
        pq.write_table(table, path, row_group_size=rows, data_page_version="2.0", write_page_index=True)
        yield path
    pq.write_table(FRAME[:0].to_arrow(), path)
    yield path


def test_counts_are_those_of_pyarrow(tmp_path):
    for path in _files(tmp_path):
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        want = [[group.column(j).num_values for j in range(metadata.num_columns)] for group in groups]
        assert claimed_values(path) == want


def test_any_damage_is_an_error_or_nothing(tmp_path):
    path, rng, read = tmp_path / "a.parquet", random.Random(0), 0
    FRAME.write_parquet(path, row_group_size=50)
    content = path.read_bytes()
    footer = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    for _ in range(1500):
        damaged = bytearray(content)
        damaged[rng.randrange(footer, len(content) - 8)] = rng.choice(
            [0, 1, 12, 0x19, 0xF9, 0xFF, rng.randrange(256)]
        )
        path.write_bytes(damaged)
        try:
            read += all(isinstance(count, int) for group in claimed_values(path) for count in group)
        except OSError:
            continue
    assert 100 < read < 1400


def test_damaged_statistics_do_not_take_the_process_with_them(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user_id": ["a", "b"], "n": [1, 2]}), path)
    content = bytearray(path.read_bytes())
    # The first column is no longer nullable, which its histogram of definition levels contradicts.
    optional = content.index(b"\x25\x02", len(content) - int.from_bytes(content[-8:-4], "little") - 8)
    content[optional + 1] = 0
    path.write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_parquet(path)


@pytest.mark.parametrize("length", [0, 40, 4000, 2**31 - 1])
def test_what_has_no_footer_is_refused(tmp_path, length):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"\x0c" * min(length, 4000) + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(OSError, match=r"the footer is damaged|Invalid argument"):
        claimed_values(path)
    with pytest.raises(UNREADABLE):
        read_parquet(path)
