"""Catalogues: titles that are empty, doubled or of no kind."""

# ruff: noqa: E501  # a case a line is a table that can be read

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from reliability.corpus.case import Case, Content, command, write

HEADER = "item_id,title\n"


def _items(
    name: str, message: str, content: Content | Callable[[Path], object], *options: str, file: str = "items.csv"
) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        items = write(folder / file, content)
        log = place.shop / "log.csv"
        return ("prepare", folder / "out", "--source", "files", "--interactions", log, "--items", items, *options)

    return command(f"{file}: {name}", message, give)


def _frame(**columns: Any) -> Callable[[Path], None]:
    return pl.DataFrame({"item_id": ["i1", "i2"], "title": ["Alien", "Heat"]} | columns).write_parquet


CASES = [
    _items("empty", "items.csv: the file is empty; expected a header line", ""),
    _items("header only", "items.csv: the catalogue has no items", HEADER),
    _items("no title", "Name the right one with --columns.title", "item_id,name\ni1,Alien\n"),
    _items("no id", "Name the right one with --columns.catalogue-item", "sku,title\ni1,Alien\n"),
    _items("titles empty", "items.csv: no item has a title (column title); name the right column, or add titles", HEADER + "i1,\ni2,\n"),
    _items("a title empty", "1 items of the log have no title in the catalogue (first: 'i1'", HEADER + "".join(f"i{i},{'' if i == 1 else f'Title {i}'}\n" for i in range(60))),
    _items("other ids", "(such as '1')", HEADER + "1,Alien\n", "--missing-titles", "drop"),
    _items("an id empty", "items.csv, line 3: item_id is empty (1 rows); fill or drop these rows", HEADER + "i1,Alien\n,Heat\n"),
    _items("two titles for one id", "item 'i1' has 2 titles: 'Alien' / 'Heat'", HEADER + "i1,Alien\ni1,Heat\n"),
    _items("one title for two ids", "'Heat' is the title of i1, i2. A language model identifies items by title: choose --duplicate-titles", HEADER + "".join(f"i{i},{'Heat' if i in (1, 2) else f'Title {i}'}\n" for i in range(60))),
    _items("a comma not quoted", "items.csv, line 2: cannot be read as a table: more than the 2 fields", HEADER + "i1,Me, Myself & Irene\n"),
    _items("latin-1", "items.csv, line 2: byte 0xe9 is not utf-8", HEADER.encode() + b"i1,Am\xe9lie\n"),
    _items("Parquet, lists for titles", "items.parquet, column title: expected text or numbers, got type List(String)", _frame(title=[["Alien"], ["Heat"]]), file="items.parquet"),
]  # fmt: skip
