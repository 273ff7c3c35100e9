"""The table and the picture of the declared trials in docs/reproduce.md, for `scripts/experiments_page.py`.

A trial is a result with the field `trial`. Its differences and the values of its controls are cells of its tables, so
that size and power are shares of the control in all trials, whatever their metric.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from differences_picture import VALUE, Difference, parsed, picture

from prefrec_lab.results import markdown

PAGE = "docs/reproduce.md"
PICTURE = "docs/images/trials.svg"
MARKS = ("<!-- trials -->", "<!-- /trials -->")
SHARE = re.compile(r"p of ±(\d+)% after Holm")
BAND = re.compile(r"finding \(±(0\.\d+)\)")
"""Columns whose names say what counts as equivalent: a share of the control, or a difference."""


@dataclass(frozen=True)
class Shown:
    """A declared difference as a share of its control.

    Attributes:
        label: its name.
        mean, low, high: the difference and its 95% interval.
        margin: differences within ± this share count as equivalent.
        finding: of the declared rule.
    """

    label: str
    mean: float
    low: float
    high: float
    margin: float
    finding: str

    @property
    def half(self) -> float:
        """Half the width of the interval: about the smallest difference that could have been seen."""
        return (self.high - self.low) / 2


def shown(fields: Mapping[str, Any], difference: Mapping[str, Any]) -> Shown:
    """Return a declared difference of a result.

    `difference` has `at` and `control`, each [number of a table, name of a row, name of a column].
    """
    tables = fields["tables"]
    table = tables[difference["at"][0]]
    row, cell = _cell(tables, difference["at"])
    control = float(re.split(r"[ \[]", _cell(tables, difference["control"])[1])[0])
    value = VALUE.match(cell)
    assert value, f"{fields['title']}: {cell} is not a difference with an interval"
    mean, low, high = (float(number.replace("−", "-")) / control for number in value.groups())
    margins = [float(found[1]) / 100 for name in table["columns"] if (found := SHARE.fullmatch(name))]
    margins += [float(found[1]) / control for name in table["columns"] if (found := BAND.fullmatch(name))]
    finding = next(own for name, own in zip(table["columns"], row, strict=True) if name.startswith("finding"))
    return Shown(difference["at"][1], mean, low, high, margins[0], finding)


def _cell(tables: Sequence[Mapping[str, Any]], place: Sequence[Any]) -> tuple[list[str], str]:
    """Return a row of a table and one of its cells. The name of a row is its first cell, or its first two."""
    number, name, column = place
    table = tables[number]
    (row,) = [own for own in table["rows"] if name in (own[0], f"{own[0]}: {own[1]}")]
    return row, row[table["columns"].index(column)]


def table(trials: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the table of trials, given as path of the page and fields."""
    columns = ["trial", "question", "dose", "S-DPO − control", "half-width of the interval", "margin", "finding"]
    rows = []
    for path, fields in trials:
        trial = fields["trial"]
        link = f"[{trial['name']}]({PurePosixPath(path).relative_to('docs')})"
        for own in trial["rows"]:
            found = [shown(fields, difference) for difference in own["differences"]]
            words = Counter(one.finding for one in found)
            rows.append(
                [
                    link,
                    own["question"],
                    _dose(own["dose"]),
                    _range([one.mean for one in found], sign="+"),
                    _range([one.half for one in found]),
                    _range([one.margin for one in found]),
                    ", ".join(f"{count} {word}" for word, count in words.items()),
                ]
            )
    return markdown({"columns": columns, "rows": rows})


def _dose(arms: Sequence[Mapping[str, int]]) -> str:
    """Return examples, passes and steps of S-DPO; `arms` have `examples`, `passes` and `batch`."""
    counts = [(one["examples"], one["passes"], -(-one["examples"] // one["batch"]) * one["passes"]) for one in arms]
    examples, passes, steps = (_span(own) for own in zip(*counts, strict=True))
    return f"{examples} examples, {passes} {'pass' if passes == '1' else 'passes'}, {steps} steps"


def _span(values: Sequence[int]) -> str:
    low, high = f"{min(values):,}", f"{max(values):,}"
    return low if low == high else f"{low} to {high}"


def _range(values: Sequence[float], sign: str = "") -> str:
    """Return the smallest and the largest of some shares in per cent."""
    low, high = (f"{own:{sign}.1%}".replace("-", "−") for own in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def drawn(trials: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the picture of all differences of the table."""
    groups: list[tuple[str, list[Difference]]] = []
    for _, fields in trials:
        for own in fields["trial"]["rows"]:
            found = []
            for one in (shown(fields, difference) for difference in own["differences"]):
                low, mean, high = (f"{100 * part:+.1f}".replace("-", "−") for part in (one.low, one.mean, one.high))
                made = parsed(one.label, f"{mean} [{low}, {high}]", one.finding)
                assert made
                found.append(made)
            groups.append((f"{fields['trial']['name']}: {own['metric']}", found))
    return picture("S-DPO − control in the declared trials", groups, "With 95% intervals", "% of the control")


def with_trials(page: str, trials: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the page with the table between its marks."""
    begin, end = (page.index(mark) for mark in MARKS)
    return f"{page[: begin + len(MARKS[0])]}\n{table(trials)}\n{page[end:]}"
