"""`prefrec explain`: which history items move a title's log-probability."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefrec.cli import _options as o
from prefrec.cli.rank import find_items
from prefrec.data import RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.explain import leave_one_out


def explain(
    run: o.RunFolder,
    user: Annotated[str | None, typer.Option(help="User id: the first of the user's rows.")] = None,
    row: Annotated[int | None, typer.Option(min=0, help="Row of the split, from 0; instead of --user.")] = None,
    ranker: o.RunRanker = None,
    target: Annotated[str | None, typer.Option(help="Title or item id to explain; default: what was taken.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    as_json: o.AsJson = False,
) -> None:
    """Ask which history items speak for a title: the question is put again without each of them.

    The number beside an item is the title's log-probability with the whole history minus that without the item:
    above 0 if the item speaks for the title. Effects do not add up.

    Examples: prefrec explain runs/demo --row 3

    prefrec explain runs/demo --user 42 --ranker sft --target Alien
    """
    opened = open_run(run)
    example, index = _example(opened, split, user, row)
    name = ranker or (opened.models[-1:] or [""])[0]
    item = find_items(opened.data.catalogue, [target])[0] if target else example.target
    answer = _explain(opened, name, example, item) | {"split": split, "row": index, "user_id": example.user_id}
    if as_json:
        o.print_json(answer)
    else:
        _print(answer)


def _example(run: Run, split: str, user: str | None, row: int | None) -> tuple[RankingExample, int]:
    """Return the row that is asked about, and its index in the split."""
    examples = run.data.split(split)
    if (user is None) == (row is None):
        raise ConfigError("give either --user or --row")
    if row is None:
        row = next((i for i, e in enumerate(examples) if e.user_id == user), None)
        if row is None:
            raise DataError(f"user {user!r} has no {split} row in {run.folder}")
    if row >= len(examples):
        raise DataError(f"row {row}: the {split} split of {run.folder} has {len(examples)} rows, from 0")
    return examples[row], row


def _explain(run: Run, name: str, example: RankingExample, target: str) -> dict[str, Any]:
    """Return plain JSON values: the model, the title, its rank in the list, and the effect of each history item."""
    lm = run.ranker(name)
    effects = leave_one_out(lm, example, target)
    titles = run.data.catalogue.titles
    answer: dict[str, Any] = {"ranker": name, "target": target, "title": titles[target], "rank": None, "of": None}
    if target in example.candidates:
        scores = lm.score([example])[0]
        own = scores[example.candidates.index(target)]
        answer |= {
            "rank": 1 + int((scores > own).sum()),
            "of": len(example.candidates),
            "share": float(np.exp(own - np.logaddexp.reduce(scores))),
            "logp": float(own),
        }
    history = [{"item_id": i, "title": titles[i], "delta_logp": delta} for i, delta in effects]
    return answer | {"history": history, "not_read": len(example.history) - len(effects)}


def _print(answer: dict[str, Any]) -> None:
    rank = f", rank {answer['rank']} of {answer['of']}" if answer["rank"] else ", not among the candidates"
    caption = f"{answer['not_read']} older items did not fit the prompt" if answer["not_read"] else None
    table = Table("history, oldest first", caption=caption, caption_justify="left")
    table.add_column("log-prob with it − without", justify="right")
    for item in answer["history"]:
        table.add_row(escape(item["title"]), f"{item['delta_logp']:+.3f}")
    out = Console()
    row = f"{answer['ranker']} on {answer['split']} row {answer['row']} (user {answer['user_id']})"
    out.print(f"{escape(row)}: {escape(answer['title'])}{rank}", highlight=False, soft_wrap=True)
    out.print(table)
