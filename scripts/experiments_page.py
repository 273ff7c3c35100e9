"""Write a page for each file of lab/results, and their index EXPERIMENTS.md: `python scripts/experiments_page.py`.

A file is one experiment, NN-name.json, or one study, studies/name.json. NN is the number by which other pages cite an
experiment: keep it. Its page is docs/experiments/NN-name.md or docs/studies/name.md, with a picture beside it if the
file names differences to draw. Engineering logs (`"group": "engineering"`) share docs/engineering.md. Fields are
those of `FIELDS`.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from differences_picture import FINDINGS as FINDINGS
from differences_picture import Difference, parsed, picture
from trials_table import PAGE, PICTURE, drawn, with_trials

from prefrec_lab.results import RESULTS, ROOT, markdown, wrapped

INDEX = "EXPERIMENTS.md"
LOGS = "docs/engineering.md"
TABLES = "docs/tables"
FOLDED = 5
"""Most tables besides the main one that a page holds, folded; more are files of their own."""
FIELDS = {
    "id": "section number of an experiment",
    "title": "heading",
    "question": "one sentence",
    "answer": "two sentences, the first of which can stand alone: the index shows it",
    "group": "part of the index, a key of `GROUPS`",
    "status": "current, superseded or void",
    "reason": "why it is not current, and what replaces it; needed for other statuses",
    "by": "list of the numbers or names of the results that replace it",
    "at": "page, if it is not the usual one",
    "commands": "list of shell commands; a line `git checkout COMMIT` comes before them unless `now` is true",
    "now": "true if the commands are those of the present version",
    "commit": "commit that was measured",
    "date": "date of that commit",
    "machine": "processor and number of cores",
    "n": "what was counted, and how many",
    "setup": "list of sentences: settings and conditions",
    "tables": "list of tables, each with title, columns and rows",
    "page": "what the page shows, the main table first: list of {table: index, columns: names, rows: first cells}; "
    "default: all tables",
    "picture": "differences to draw: list of {table: index, columns: names, omit or rows: first cells, title, "
    "labels: number of columns that name a difference, default 1}",
    "images": "list of {file, text}: further pictures, with a text for those who cannot see them",
    "notes": "list of findings beyond the answer",
    "more": "list of sentences that the page leaves out",
    "parts": "further experiments of the section, which the page leaves out",
    "trial": "of a declared trial, for `scripts/trials_table.py`: name; rows, a list of {question, metric, dose, "
    "differences}. A dose is a list of {examples, passes, batch}, a difference {at, control}: two cells of tables",
}
GROUPS = {
    "model": "What a language model adds",
    "alignment": "What S-DPO and other alignments do",
    "likes": "Likes and dislikes",
    "measuring": "How to measure",
    "use": "Use, noise and updates",
    "engineering": "Engineering logs",
}
MANY = 900
"""Characters of conditions that are better read as a list."""
STATUSES = ("current", "superseded", "void")
HEAD = """# Experiments

What this project claims rests on the results below. Each has a page with its table, conditions and command, which
`python scripts/experiments_page.py` writes from `lab/results`.

*Current*: the claim holds as it is stated. *Superseded*: a later result answers the question better. *Void*: the
design cannot answer the question; the page says why.

What holds unless a page says otherwise:

- Intervals are 95%. Commits of 2026-11-28, 18:40 UTC, and later have a jackknife over users and targets. Earlier ones
  have a percentile bootstrap over users with 2,000 resamples, whose intervals are narrower.
- Differences are paired, example by example, and not corrected for the number of comparisons.
- There is one seed.
- Python 3.11, torch 2.13 on CPU, transformers 5.24 and peft 0.21, on two cores that mostly shared the machine with
  other work. Zen 4 and Zen 5 are AMD EPYC processors.
- *SmolLM2* is SmolLM2-135M-Instruct in bfloat16, unpacked from Q4_1. An *ensemble* adds the scores of its parts.
- Data sets are read from `../data` ([Data sets](docs/datasets.md)).
"""
REMOVED = """
## Removed results

`git show a35b467:EXPERIMENTS.md` has them. Other sections were replaced, or their code is gone.

<a id="section-13"></a>
<a id="section-17"></a>
<a id="section-21"></a>
<a id="section-22"></a>
<a id="section-26"></a>
<a id="section-30"></a>
<a id="section-38"></a>
<a id="section-39"></a>
<a id="section-47"></a>

- 17, 22, 30, 39 and 47 are void: their 20 uniform candidates of Amazon Office can be solved without the user
  ([55](docs/experiments/55-audits.md)).
- 38 is void: a baseline that knows the age of items leaves about +0.05 of its +0.12.
- 21 and 26 are void: they compared the reward of likes with too weak an average
  ([51](docs/experiments/51-preferences.md)).
- 13 became the studies above.
"""
LOGS_HEAD = """# Engineering logs

For contributors: measurements of speed, memory, load and tests. [Speed](scale.md#speed), [Choose a model](choose.md)
and [How prefrec is tested](testing.md) quote them. `python scripts/experiments_page.py` writes this page from
`lab/results`; [Experiments](../EXPERIMENTS.md) says what holds for all of them.
"""


class Result:
    """A file of results.

    Args:
        file: below lab/results.
        fields: its content.
    """

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self.file, self.fields = file, fields

    @property
    def name(self) -> str:
        """The name of the file, without its ending."""
        return self.file.stem

    @property
    def key(self) -> str:
        """The number of an experiment, or the name of a study, by which others cite it."""
        return str(self.fields.get("id", self.name))

    @property
    def is_log(self) -> bool:
        """True if it is an engineering log."""
        return bool(self.fields["group"] == "engineering")

    @property
    def at(self) -> str:
        """The path of its page."""
        if self.is_log:
            return LOGS
        usual = f"{'experiments' if 'id' in self.fields else 'studies'}/{self.name}.md"
        return f"docs/{self.fields.get('at', usual)}"

    @property
    def link(self) -> str:
        """The address of its page, or of its place in the page of logs."""
        return f"{self.at}#section-{self.fields['id']}" if self.is_log else self.at

    @property
    def picture_at(self) -> str:
        """The path of its picture."""
        return self.at.removesuffix(".md") + ".svg"

    @cached_property
    def shown(self) -> list[dict[str, Any]]:
        """The tables of the page."""
        tables = self.fields.get("tables", [])
        views = self.fields.get("page", [{"table": i} for i in range(len(tables))])
        return [_shown(tables, view, self.file.name) for view in views]

    @property
    def files(self) -> list[str]:
        """The paths of its other tables as CSV, if they are too many for the page; else none."""
        others = len(self.shown) - 1
        return (
            [f"{TABLES}/{self.name}-{n}.csv" for n in range(1, others + 1)]
            if others > FOLDED and not self.is_log
            else []
        )

    @cached_property
    def drawn(self) -> str:
        """Its picture as SVG; empty if it names no differences."""
        groups = [_differences(self.fields["tables"], view) for view in self.fields.get("picture", [])]
        groups = [(title, found) for title, found in groups if found]
        if not groups:
            return ""
        metric, margin = self._axis()
        if len(groups) == 1:
            return picture(groups[0][0], [("", groups[0][1])], metric=metric, margin=margin)
        return picture(self.fields["title"], groups, "Differences with 95% intervals", metric, margin)

    def _axis(self) -> tuple[str, float | None]:
        """Return the metric of its picture, if all groups have the same, and the margin if a column names one."""
        views = self.fields["picture"]
        texts = [
            " ".join([self.fields["tables"][v["table"]]["title"], v.get("title", ""), *v["columns"]]) for v in views
        ]
        metrics = {found[0] if (found := METRIC.search(text)) else "" for text in texts}
        columns = [c for v in views for c in self.fields["tables"][v["table"]]["columns"]]
        margins = {float(found[1]) for column in columns if (found := MARGIN.fullmatch(column))}
        return metrics.pop() if len(metrics) == 1 else "", margins.pop() if len(margins) == 1 else None


METRIC = re.compile(r"NDCG@10|HR@1\b|AUC")
SHARE = re.compile(r"p of ±(\d+)% after Holm")
NUMBER = re.compile(r"\**(\d\.\d+)")
MARGIN = re.compile(r"finding \(±(0\.\d+)\)")
SLUG = re.compile(r"(?<![\w-])(s-dpo|sft-more|sft|dpo|dmpo|bpr)(?![\w-])")
NAMES = {"sft-more": "SFT continued"}
"""Name of an arm → its words in a picture. Default: in capitals."""


def pages(results: Path = RESULTS) -> dict[str, str]:
    """Return path → text of the index, of all pages and of their pictures."""
    found = read_all(results)
    made = {INDEX: index(found), LOGS: logs(found)}
    for result in found:
        if not result.is_log:
            made[result.at] = page(result, found)
            if result.drawn:
                made[result.picture_at] = result.drawn
            made |= {path: as_csv(table) for path, table in zip(result.files, result.shown[1:], strict=False)}
        if result.key == "71":
            made[README] = with_benchmarks((ROOT / README).read_text(encoding="utf-8"), result.fields)
    of_name = {result.fields["trial"]["name"]: result for result in found if "trial" in result.fields}
    trials = [(result.at, result.fields) for _, result in sorted(of_name.items())]
    if trials:
        made |= {PICTURE: drawn(trials), PAGE: with_trials((ROOT / PAGE).read_text(encoding="utf-8"), trials)}
    return made


def as_csv(table: Mapping[str, Any]) -> str:
    """Return a table as CSV, without the marks of Markdown."""
    text = io.StringIO()
    rows = ([str(cell).replace("**", "") for cell in row] for row in [table["columns"], *table["rows"]])
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


README = "README.md"
BEAUTY = ("<!-- beauty -->", "<!-- /beauty -->")
"""Marks of README's line on what the preset reaches on a published benchmark."""
PUBLISHED = ("<!-- published -->", "<!-- /published -->")
"""Marks of README's table of published benchmarks."""
SETS = ("Amazon Beauty", "Amazon Scientific", "Industrial, 27% of its training")
"""Names of the first tables of the published benchmarks in README."""


def with_benchmarks(readme: str, benchmarks: Mapping[str, Any]) -> str:
    """Return README with the line on Amazon Beauty and the table that the published benchmarks give.

    The line has our blend and the best published model of those that learn validation interactions, too (`+val`).
    """
    found = {
        (name, learns): _best(benchmarks["tables"][n], learns) for n, name in enumerate(SETS) for learns in LEARNS
    }
    published, _, ours = found[SETS[0], "+val"]
    said = (
        "- **You have orders and products.** Two files and three commands give a recommender and its server ([On "
        "your site by Friday](docs/on-your-site.md)). On Amazon Beauty the preset, which has no language model, "
        f"reaches NDCG@10 {ours}, the best published model with the same interactions {published} ([published "
        "benchmarks](docs/benchmarks.md))."
    )
    columns = ["NDCG@10, full ranking", "trained on", "best published", "our best baseline", "our blend"]
    table = markdown({"columns": columns, "rows": [[*place, *values] for place, values in found.items()]})
    return _between(_between(readme, BEAUTY, wrapped(said)), PUBLISHED, table)


LEARNS = ("train", "+val")


def _best(table: Mapping[str, Any], learns: str) -> tuple[str, str, str]:
    """Return NDCG@10 of the best published model, our best baseline, and our blend, trained on the same."""
    model, trained, value = (table["columns"].index(name) for name in ("model", "trained on", "NDCG@10"))
    alike = {row[model].strip("*"): row[value] for row in table["rows"] if row[trained] == learns}
    ours = {name: cell for name, cell in alike.items() if name.startswith("prefrec, ")}
    papers = [cell for name, cell in alike.items() if name not in ours]
    blend = ours.pop("prefrec, blend")
    del ours["prefrec, title-tower"]
    return max(papers, default="–"), max(ours.values()).split()[0], blend


def _between(text: str, marks: tuple[str, str], written: str) -> str:
    """Return the text with `written` between the marks."""
    begin, end = (text.index(mark) for mark in marks)
    return f"{text[: begin + len(marks[0])]}\n{written}\n{text[end:]}"


def read_all(results: Path = RESULTS) -> list[Result]:
    """Return all experiments by number, then all studies."""
    files = [*sorted(results.glob("*.json")), *sorted((results / "studies").glob("*.json"))]
    found = [Result(file.relative_to(results), _read(file)) for file in files]
    known = {result.key for result in found}
    for result in found:
        if absent := set(map(str, result.fields.get("by", []))) - known:
            raise ValueError(f"{result.file}: `by` names {sorted(absent)}, which do not exist")
    return found


def _read(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if unknown := fields.keys() - FIELDS.keys():
        raise ValueError(f"{file.name}: unknown fields {sorted(unknown)}; the known ones are {list(FIELDS)}")
    if missing := {"title", "question", "answer", "group", "status"} - fields.keys():
        raise ValueError(f"{file.name}: it lacks {sorted(missing)}")
    if fields["status"] not in STATUSES or fields["group"] not in GROUPS:
        raise ValueError(f"{file.name}: status is one of {STATUSES}, and group one of {tuple(GROUPS)}")
    if fields["status"] != "current" and not fields.get("reason"):
        raise ValueError(f"{file.name}: `reason` says why it is {fields['status']}")
    if "id" in fields and not file.name.startswith(f"{fields['id']:02d}-"):
        raise ValueError(f"{file.name}: the name must begin with the id {fields['id']:02d}")
    for table in fields.get("tables", []):
        for number, row in enumerate(table["rows"], start=1):
            if len(row) != len(table["columns"]):
                cells = f"{len(row)} cells for {len(table['columns'])} columns"
                raise ValueError(f"{file.name}, table {table['title']!r}, row {number}: {cells}")
    return fields


def _shown(tables: Sequence[dict[str, Any]], view: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the rows and columns of a table that the page shows."""
    table = tables[view["table"]]
    columns = view.get("columns", table["columns"])
    firsts = view.get("rows", [row[0] for row in table["rows"]])
    if missing := [c for c in columns if c not in table["columns"]] + [
        f for f in firsts if f not in {row[0] for row in table["rows"]}
    ]:
        raise ValueError(f"{name}, page, table {view['table']}: there is no {missing}")
    places = [table["columns"].index(c) for c in columns]
    rows = [[row[p] for p in places] for row in table["rows"] if row[0] in firsts]
    return {"title": view.get("title", table["title"]), "columns": columns, "rows": rows}


def _differences(tables: Sequence[dict[str, Any]], view: Mapping[str, Any]) -> tuple[str, list[Difference]]:
    """Return the title of a group of a picture, and its differences."""
    table = tables[view["table"]]
    columns = view["columns"]
    means = _means(tables)
    share = next((float(found[1]) / 100 for column in table["columns"] if (found := SHARE.fullmatch(column))), 0.0)
    finding = next((n for n, column in enumerate(table["columns"]) if column.startswith("finding")), None)
    found = []
    for row in table["rows"]:
        if row[0] in view.get("omit", []) or ("rows" in view and row[0] not in view["rows"]):
            continue
        for column in columns:
            label = ", ".join(row[: view.get("labels", 1)] + ([column] if len(columns) > 1 else []))
            label = SLUG.sub(lambda slug: NAMES.get(slug[0], slug[0].upper()), label)
            outcome = "" if finding is None else row[finding]
            cell = parsed(label, row[table["columns"].index(column)], outcome)
            if cell and share:
                named = dict(zip(table["columns"], row, strict=True))
                against = named["difference"].rpartition(" − ")[2]
                cell = replace(cell, margin=share * means.get((named.get("data", ""), against), 0.0))
            found += [cell] if cell else []
    title = SLUG.sub(lambda slug: NAMES.get(slug[0], slug[0].upper()), view.get("title", columns[0]))
    return title, found


def _means(tables: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return (data set, ranker) → its mean, from tables of rankers of one set and of arms × sets."""
    means = {}
    for table in tables:
        first, *columns = table["columns"]
        for name, *cells in table["rows"] if first in ("arm", "ranker") else ():
            for column, cell in zip(columns, cells, strict=True):
                data = column if first == "arm" else table["title"].partition(":")[0]
                number = NUMBER.match(cell)
                if number and (first == "arm" or column.startswith("all, ")):
                    means[data, name] = float(number[1])
    return means


def page(result: Result, others: Sequence[Result]) -> str:
    """Return the page of a result."""
    fields = result.fields
    parts = [f"# {fields['title']}", f"**{fields['question']}**", fields["answer"], _status(result, others)]
    if result.drawn:
        parts.append(f"![{_alt(fields)}]({Path(result.picture_at).name})")
    parts += [f"![{image['text']}]({image['file']})" for image in fields.get("images", [])]
    if result.shown:
        parts += ["## The figures", *_tables(result)]
    if fields.get("notes"):
        parts += ["## What else was found", "\n".join(f"- {note}" for note in fields["notes"])]
    parts += ["## How it was measured", *_made(result)]
    return "\n\n".join(wrapped(linked(part, result.at, others)) for part in parts) + "\n"


def _alt(fields: Mapping[str, Any]) -> str:
    return f"Differences with 95% intervals: {fields['title']}"


def _status(result: Result, others: Sequence[Result]) -> str:
    """Return the line that says whether the claim holds."""
    fields = result.fields
    if fields["status"] == "current":
        return "Status: **current**." + (f" {fields['reason']}" if "reason" in fields else "")
    at = {other.key: other for other in others}
    links = [f"[{at[str(key)].fields['title']}]({_to(at[str(key)].link, result.at)})" for key in fields.get("by", [])]
    see = f" See {' and '.join(links)}." if links else ""
    return f"> Status: **{fields['status']}**. {fields['reason']}{see}"


def _to(target: str, page_at: str) -> str:
    """Return the link from a page to a target, both given from the root."""
    path, _, anchor = target.partition("#")
    link = posixpath.relpath(path, posixpath.dirname(page_at) or ".")
    return f"{link}#{anchor}" if anchor else link


def _tables(result: Result) -> Iterator[str]:
    """Yield the main table, then the others: they open on a click, or if they are many, links lead to their files."""
    first, *others = result.shown
    yield f"{first['title'].rstrip('.')}:"
    yield markdown(first)
    if result.files:
        links = [
            f"- [{table['title'].rstrip('.')}]({_to(path, result.at)})"
            for table, path in zip(others, result.files, strict=True)
        ]
        yield "Further tables, as CSV:"
        yield "\n".join(links)
        return
    for table in others:
        summary = f"<summary>{table['title'].rstrip('.')}</summary>"
        yield f'<details markdown="1">\n{summary}\n\n{markdown(table)}\n\n</details>'


def linked(text: str, page_at: str, results: Sequence[Result]) -> str:
    """Return a text in which each `experiment NN` leads to that experiment; tables and code stay as they are."""
    if text.startswith(("|", "```", "#", "![", "<")):
        return text
    at = {result.key: result.link for result in results if "id" in result.fields}

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}]({_to(at[found[1]], page_at)})" if found[1] in at else found[0]

    return re.sub(r"\bexperiment (\d+)\b", link, text)


def _made(result: Result) -> Iterator[str]:
    """Yield the conditions, the provenance, the command and the link to the data."""
    fields = result.fields
    if setup := fields.get("setup"):
        is_long = len(setup) > 1 and sum(map(len, setup)) > MANY
        yield "\n".join(f"- {sentence}" for sentence in setup) if is_long else " ".join(setup)
    commit = f"commit `{fields['commit']}`" if "commit" in fields else ""
    date = fields.get("date")
    n = f"n = {fields['n']}" if "n" in fields else ""
    yield "Measured: " + "; ".join(part for part in (n, commit, date, fields.get("machine")) if part) + "."
    data = _to(f"lab/results/{result.file.as_posix()}", result.at)
    yield f"Data: [`lab/results/{result.file.as_posix()}`]({data}), with all tables."
    if commands := fields.get("commands"):
        is_said = fields.get("now") or commands[0].startswith("git checkout")
        checkout = [] if is_said else [f"git checkout {re.split('[,; ]', fields['commit'])[0]}"]
        yield "\n".join(["```sh", *checkout, *commands, "```"])


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, which ends before a capital letter."""
    return re.split(r"(?<=[.!?]) (?=[A-Z*])", text, maxsplit=1)[0]


def index(results: Sequence[Result]) -> str:
    """Return EXPERIMENTS.md."""
    parts = [HEAD]
    for group, heading in GROUPS.items():
        own = [result for result in results if result.fields["group"] == group]
        parts.append(f"## {heading}\n")
        rows = [_index_row(result) for result in own]
        parts.append(markdown({"columns": ["question", "answer", "status"], "rows": rows}) + "\n")
    return "\n".join(parts).rstrip() + "\n" + REMOVED


def _index_row(result: Result) -> list[str]:
    fields = result.fields
    anchor = f'<a id="section-{fields["id"]}"></a>' if "id" in fields else ""
    number = f"{fields['id']}. " if "id" in fields else ""
    question = f"{anchor}{number}[{fields['question']}]({result.link})"
    n = f" (n: {fields['n']})" if "n" in fields else ""
    status = fields["status"] if fields["status"] == "current" else f"**{fields['status']}**"
    return [question, _without_links(first_sentence(fields["answer"])) + n, status]


def _without_links(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)


def logs(results: Sequence[Result]) -> str:
    """Return the page of engineering logs."""
    parts = [LOGS_HEAD.rstrip()]
    for result in results:
        if not result.is_log:
            continue
        fields = result.fields
        parts += [f'<a id="section-{fields["id"]}"></a>', f"## {fields['title']}", f"**{fields['question']}**"]
        parts.append(fields["answer"])
        if fields["status"] != "current":
            parts.append(_status(result, results))
        parts += _tables(result)
        if fields.get("notes"):
            parts.append("\n".join(f"- {note}" for note in fields["notes"]))
        parts += _made(result)
    return "\n\n".join(wrapped(linked(part, LOGS, results)) for part in parts) + "\n"


def main() -> None:
    """Write all pages, and remove generated ones that no result has any more."""
    made = pages()
    for folder in ("docs/experiments", "docs/studies", TABLES):
        (ROOT / folder).mkdir(exist_ok=True)
    for path in stale(made):
        path.unlink()
    for name, text in made.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(made)} files\n")


def stale(made: Mapping[str, str]) -> list[Path]:
    """Return pages and pictures of experiments that no result has any more."""
    there = [
        *(ROOT / "docs/experiments").glob("*"),
        *(ROOT / "docs/studies").glob("*.svg"),
        *(ROOT / TABLES).glob("*"),
    ]
    return [path for path in there if path.relative_to(ROOT).as_posix() not in made]


if __name__ == "__main__":
    main()
