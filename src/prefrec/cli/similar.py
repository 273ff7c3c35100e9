"""`prefrec similar`: list the items that are most similar to an item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.cli.recommend import ids_of
from prefrec.recommend.rules import ItemRules, Relation


def similar(
    run: o.RunFolder,
    item: Annotated[str, Parameter(allow_leading_hyphen=True, help="Title or item id.")],
    /,
    *,
    k: Annotated[int, Parameter(validator=Number(gte=1), help="Number of items.")] = 10,
    ranker: o.RunRanker = None,
    as_json: o.AsJson = False,
    section: o.Own[ItemRules] = o.untouched(ItemRules),
) -> None:
    """List the items that are most similar to an item (substitutes), with filters and boosts.

    They are ranked by the cosine of item vectors, if the ranker has some (title towers, item-ID tokens), otherwise
    by that of titles (title TF-IDF). What goes with an item is found by `prefrec also-bought`.

    Example: prefrec similar runs/demo Alien --k 5 --ranker s-dpo
    """
    print_related("similar", run, ranker, item, k, section, as_json)


def print_related(
    relation: Relation,
    run: Path,
    ranker: str | None,
    item: str,
    k: int,
    rules: ItemRules,
    as_json: bool,
) -> None:
    """Print the items that have a relation to an item, and what ranked them."""
    # Imported here, so that --help need not wait for torch and transformers.
    from prefrec.recommender import Recommender

    given = rules.model_dump() | {"deny": ids_of(rules.deny), "allow": rules.allow and ids_of(rules.allow)}
    recommender = Recommender.from_run(run, ranker)
    ask = recommender.also_bought if relation == "also_bought" else recommender.similar
    answer = ask(item, k, **given)
    if as_json:
        o.print_json({"by": answer.by, "items": answer.frame().to_dicts()})
    else:
        print(repr(answer))
