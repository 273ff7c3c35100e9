"""Count the values that the footer of a Parquet file claims.

pyarrow ends the process if it is asked for a column of a row group with damaged statistics
(`RowGroupMetaData.column`, pyarrow 26), so the footer is read here, in the compact protocol of Thrift.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

_TAIL = 8
"""Bytes behind the footer: its length and the letters PAR1."""
# Fields of the format's structs: FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data, its num_values.
_ROW_GROUPS, _COLUMNS, _META_DATA, _NUM_VALUES = 4, 1, 3, 5


def claimed_values(path: Path) -> list[list[int]]:
    """Return the number of values of each column, for each row group; raise OSError if the footer is damaged."""
    with path.open("rb") as file:
        file.seek(-_TAIL, 2)
        size = struct.unpack("<I", file.read(4))[0]
        file.seek(-_TAIL - size, 2)
        footer = _Compact(file.read(size))
    try:
        groups = footer.struct()[_ROW_GROUPS]
        return [[int(chunk[_META_DATA][_NUM_VALUES]) for chunk in group[_COLUMNS]] for group in groups]
    except (LookupError, TypeError, ValueError, RecursionError) as e:
        raise OSError(f"the footer is damaged ({type(e).__name__})") from None


class _Compact:
    """Reads values of Thrift's compact protocol, one after the other. Raise IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self) -> dict[int, Any]:
        """Return number of the field → value."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            # The upper half is the distance to the last field's number; 0: the number follows.
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15, is_field=True)
        return fields

    def value(self, kind: int, is_field: bool = False) -> Any:
        """Return a value of one of the protocol's types."""
        if kind in (1, 2):  # the type of a field is its truth; in a list, a byte follows
            return kind == 1 if is_field else self.byte() == 1
        if kind in (3, 7):
            return self.skip(1 if kind == 3 else 8)
        if kind in (4, 5, 6):
            return self.integer()
        if kind == 8:
            return self.skip(self.unsigned())
        if kind in (9, 10):
            head = self.byte()
            length = head >> 4 if head >> 4 < 15 else self.unsigned()
            return [self.value(head & 15) for _ in range(length)]
        if kind == 11:
            length = self.unsigned()
            kinds = self.byte() if length else 0
            return [(self.value(kinds >> 4), self.value(kinds & 15)) for _ in range(length)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"type {kind}")

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self.data):
            raise IndexError("the data end")

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("an integer of more than 64 bits")

    def integer(self) -> int:
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)
