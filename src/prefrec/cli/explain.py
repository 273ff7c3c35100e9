"""`prefrec explain`: show what each history item adds to the score of an item."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.data import RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.recommend.rules import ById
from prefrec.recommender import Recommender


def explain(
    run: o.RunFolder,
    /,
    *,
    history: o.History = None,
    user: Annotated[str | None, Parameter(help="User of the run's log, whose items come before --history.")] = None,
    item: Annotated[str | None, Parameter(allow_leading_hyphen=True, help="Title or item id to explain.")] = None,
    candidate: Annotated[
        o.Texts, Parameter(help="Score the item among these titles or ids. Repeatable. Default: all.")
    ] = None,
    row: Annotated[
        int | None,
        Parameter(validator=Number(gte=0), help="Explain this example of the split, from 0: by default its target."),
    ] = None,
    split: Annotated[str | None, Parameter(help="With --row: train, validation or test. Default: test.")] = None,
    ranker: o.RunRanker = None,
    as_json: o.AsJson = False,
) -> None:
    """Show what each history item adds to the score of an item.

    For counts, EASE and title towers, effects are exact terms of the score. For other rankers, an effect is the score
    with the whole history, minus the score without the item, and is measured for the last 50 items. A blend's effects
    are also shown by part.

    Example: prefrec explain runs/demo --user 42 --item Alien

    Example: prefrec explain runs/demo --history Emma --history Babe --item Alien --ranker s-dpo
    """
    if (row is None) == (history is None and user is None):
        raise ConfigError("give either --row, or --history or --user")
    if row is None and split is not None:
        raise ConfigError("--split is the split of --row: give a row of it, or leave it out")
    if row is None and item is None:
        raise ConfigError("name the item to explain with --item")
    split = split or "test"
    recommender = Recommender.from_run(run, ranker)
    about: dict[str, Any] = {}
    shown: list[Any] = list(history or ())
    listed: list[Any] = list(candidate or ())
    target: Any = item
    if row is not None:
        example = _example(recommender, split, row)
        shown, own = ([ById(item_id=i) for i in ids] for ids in (example.history, example.candidates))
        listed = listed or own
        target = item or ById(item_id=example.target)
        about = {"split": split, "row": row, "user_id": example.user_id}
    answer = recommender.explain(shown, target, listed, user=user)
    ranking = recommender.rank(shown, listed) if row is not None else []
    if line := next((line for line in ranking if line.item_id == answer.item_id), None):
        about |= {"rank": line.rank, "of": len(ranking)}
    if as_json:
        o.print_json(answer.to_dict() | about)
        return
    if about:
        rank = f", rank {about['rank']} of {about['of']}" if "rank" in about else ""
        print(f"{split} example {row} of user {about['user_id']}{rank}")
    print(repr(answer))


def _example(recommender: Recommender, split: str, row: int) -> RankingExample:
    examples = recommender.data.split(split)
    if row >= len(examples):
        source = recommender.source
        raise DataError(f"row {row}: the {split} split of {source} has {len(examples)} examples, numbered from 0")
    return examples[row]
