"""`prefrec explain`: which history items move a title's log-probability."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefrec.cli.rank import find_item
from prefrec.data import RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.explain import leave_one_out


def explain(
    run: Annotated[Path, typer.Argument(help="Folder that `prefrec run` wrote, as runs/demo.")],
    user: Annotated[str | None, typer.Option(help="User id: the first of the user's rows.")] = None,
    row: Annotated[int | None, typer.Option(min=0, help="Row of the split, from 0; instead of --user.")] = None,
    ranker: Annotated[str | None, typer.Option(help="Model of the run, as s-dpo; default: the last.")] = None,
    target: Annotated[str | None, typer.Option(help="Title or item id to explain; default: what was taken.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Ask which history items speak for a title: the question is put again without each of them.

    The number beside an item is the title's log-probability with the whole history minus that without the item:
    above 0 where the item speaks for the title. Effects do not add up.

    Examples: prefrec explain runs/demo --row 3

    prefrec explain runs/demo --user 42 --ranker sft --target Alien
    """
    opened = open_run(run)
    example, index = _example(opened, split, user, row)
    name = ranker or (opened.models[-1:] or [""])[0]
    asked = find_item(opened.data.catalogue, target) if target else example.target
    answer = _explain(opened, name, example, asked) | {"split": split, "row": index, "user_id": example.user_id}
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _print(answer)


def _example(run: Run, split: str, user: str | None, row: int | None) -> tuple[RankingExample, int]:
    """The row that is asked for, and its index in the split."""
    examples = run.data.split(split)
    if (user is None) == (row is None):
        raise ConfigError("give either --user or --row")
    if user is not None:
        row = next((i for i, e in enumerate(examples) if e.user_id == user), None)
        if row is None:
            raise DataError(f"user {user!r} has no {split} row in {run.folder}")
    if row is None or row >= len(examples):
        raise DataError(f"row {row}: the {split} split of {run.folder} has {len(examples)} rows, from 0")
    return examples[row], row


def _explain(run: Run, name: str, example: RankingExample, target: str) -> dict[str, Any]:
    """Plain JSON values: the model, the title, its place in the list, and an entry a history item."""
    lm = run.ranker(name)
    effects = leave_one_out(lm, example, target)
    titles = run.data.catalogue.titles
    answer: dict[str, Any] = {"ranker": name, "target": target, "title": titles[target], "rank": None, "of": None}
    if target in example.candidates:
        scores = lm.score([example])[0]
        place = example.candidates.index(target)
        answer |= {
            "rank": 1 + int((scores > scores[place]).sum()),
            "of": len(example.candidates),
            "share": float(np.exp(scores[place] - np.logaddexp.reduce(scores))),
            "logp": float(scores[place]),
        }
    history = [{"item_id": i, "title": titles[i], "delta_logp": delta} for i, delta in effects]
    return answer | {"history": history, "not_read": len(example.history) - len(effects)}


def _print(answer: dict[str, Any]) -> None:
    place = f", rank {answer['rank']} of {answer['of']}" if answer["rank"] else ", not among the candidates"
    caption = f"{answer['not_read']} older items did not fit the prompt" if answer["not_read"] else None
    table = Table("history, oldest first", caption=caption, caption_justify="left")
    table.add_column("log-prob with it − without", justify="right")
    for item in answer["history"]:
        table.add_row(escape(item["title"]), f"{item['delta_logp']:+.3f}")
    out = Console()
    who = f"{answer['ranker']} on {answer['split']} row {answer['row']} (user {answer['user_id']})"
    out.print(f"{escape(who)}: {escape(answer['title'])}{place}", highlight=False, soft_wrap=True)
    out.print(table)
