"""`prefrec explain`: show how history items change a title's log-probability."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from scipy.special import softmax

from prefrec.cli import _options as o
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation.labels import as_table
from prefrec.pipeline.opened import open_run
from prefrec.recommend.rules import ById
from prefrec.recommender import Recommender


def explain(
    run: o.RunFolder,
    user: Annotated[str | None, typer.Option(help="User id; explains the user's first example.")] = None,
    row: Annotated[int | None, typer.Option(min=0, help="Example of the split, from 0, instead of --user.")] = None,
    ranker: o.RunRanker = None,
    target: Annotated[str | None, typer.Option(help="Title or item id to explain. Default: the target.")] = None,
    split: Annotated[str, typer.Option(help="Split: train, validation or test.")] = "test",
    as_json: o.AsJson = False,
) -> None:
    """Show how much each history item raises a title's log-probability.

    The effect of an item is the log-probability with the whole history, minus without the item. Effects do not add up
    to the total.

    Example: prefrec explain runs/demo --user 42 --ranker sft --target Alien
    """
    opened = open_run(run)
    recommender = Recommender(opened.data, opened.entry(ranker or opened.default(opened.models)), str(run))
    index = _row(recommender.data, run, split, user, row)
    example = recommender.data.split(split)[index]
    answer = _explain(recommender, example, target) | {"split": split, "row": index, "user_id": example.user_id}
    if as_json:
        o.print_json(answer)
        return
    rank = f", rank {answer['rank']} of {answer['of']}" if answer["rank"] else ", not among the candidates"
    caption = f"{answer['ranker']} on {split} example {index} (user {example.user_id}): {answer['title']}{rank}"
    typer.echo(f"{caption}\nlog-probability of the title with the item − without it, oldest item first")
    typer.echo(as_table(pl.DataFrame(answer["history"])))
    if answer["not_read"]:
        typer.echo(f"{answer['not_read']} older items did not fit into the prompt")


def _row(data: PreparedData, run: Path, split: str, user: str | None, row: int | None) -> int:
    examples = data.split(split)
    if (user is None) == (row is None):
        raise ConfigError("give exactly one of --user and --row")
    if user is not None:
        row = next((i for i, e in enumerate(examples) if e.user_id == user), None)
    if row is None:
        raise DataError(f"user {user!r} has no {split} example in {run}")
    if row >= len(examples):
        raise DataError(f"row {row}: the {split} split of {run} has {len(examples)} examples, numbered from 0")
    return row


def _explain(recommender: Recommender, example: RankingExample, target: str | None) -> dict[str, Any]:
    """Return plain JSON values: ranker, title, its rank among the candidates, and the effect of each history item."""
    shown, listed = ([ById(item_id=i) for i in ids] for ids in (example.history, example.candidates))
    (item,) = recommender.items.resolve([target or ById(item_id=example.target)])
    effects = recommender.explain(shown, item, listed)
    about: dict[str, Any] = {"ranker": recommender.entry.name, "target": item.item_id, "title": item.title}
    about |= {"rank": None, "of": None}
    if item.item_id in example.candidates:
        ranking = recommender.rank(shown, listed)
        line = next(row for row in ranking if row.item_id == item.item_id)
        share = softmax([row.score for row in ranking])[line.rank - 1]
        about |= {"rank": line.rank, "of": len(ranking), "share": float(share), "logp": line.score}
    history = [{"item_id": e.item_id, "title": e.title, "delta_logp": e.effect} for e in effects]
    return {**about, "history": history, "not_read": len(shown) - len(effects)}
