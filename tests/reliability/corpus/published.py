"""The published S-DPO JSON: broken JSON, rows that are none, titles that do not fit."""

# ruff: noqa: E501  # a case a line is a table that can be read

import json
from pathlib import Path
from typing import Any

from reliability.corpus.case import Case, Content, command, write

ROW: dict[str, Any] = {"historyList": "A::B", "itemList": ["C", "D"], "trueSelection": "C"}


def _json(name: str, message: str, files: dict[str, Content] | Content, *options: str) -> Case:
    def give(place: Any, folder: Path) -> tuple[Any, ...]:
        for file, content in (files if isinstance(files, dict) else {"test.json": files}).items():
            write(folder / "json" / file, content)
        return ("prepare", folder / "out", "--source", "published-json", "--path", folder / "json", *options)

    return command(f"published JSON: {name}", message, give)


def _rows(*rows: Any) -> str:
    return json.dumps(list(rows))


FORM = "expected historyList (text), itemList (list of titles) and trueSelection (text)"

CASES = [
    _json("no files", "json: no published JSON; expected files such as train.json, val.json or test.json", {"x.txt": ""}),
    _json("two of one part", "a-test.json and b-test.json both look like the test examples; keep one", {"a-test.json": _rows(ROW), "b-test.json": _rows(ROW)}),
    _json("empty", "test.json: no rows", ""),
    _json("rows of another length", "source published-json takes the rows as they are", _rows(ROW), "--candidates.size", "7"),
    _json("cut", "truncated, damaged or not valid JSON", _rows(ROW, ROW)[:-20]),
    _json("an object that is no row", f"row 0: {FORM}", "[{}]"),
    _json("the choice not among the titles", "row 0: trueSelection 'E' is 0× in itemList, expected once", _rows(ROW | {"trueSelection": "E"})),
    _json("the choice twice among the titles", "row 0: trueSelection 'C' is 2× in itemList, expected once", _rows(ROW | {"itemList": ["C", "C"]})),
    _json("lines, one broken", "truncated, damaged or not valid JSON", json.dumps(ROW) + "\n{\n"),
    _json("nested without end", "truncated, damaged or not valid JSON", "[" * 100_000),
    _json("a number without end", "truncated, damaged or not valid JSON", "[" + "1" * 5000 + "]"),
    _json("not UTF-8", "truncated, damaged or not valid JSON", b'[{"historyList": "\xe9"}]'),
    _json("a title of nothing", "row 0: an empty title in historyList or itemList", _rows(ROW | {"historyList": "A::::B"})),
]  # fmt: skip
