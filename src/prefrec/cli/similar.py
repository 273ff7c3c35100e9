"""`prefrec similar`: list the items that are most similar to an item."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.cli.recommend import ids_of
from prefrec.recommend.rules import ItemRules


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
    """List the items that are most similar to an item, with filters and boosts.

    Similarity is that of the ranker, if it has one: the cosine of the item vectors of title towers and item-ID
    tokens, and the item-to-item scores of counts and EASE. Otherwise it is the cosine in the log (item-kNN) plus the
    cosine of titles (TF-IDF).

    Example: prefrec similar runs/demo Alien --k 5 --ranker EASE
    """
    # Imported here, so that --help need not wait for torch and transformers.
    from prefrec.recommender import Recommender

    rules = section.model_dump() | {"deny": ids_of(section.deny), "allow": section.allow and ids_of(section.allow)}
    answer = Recommender.from_run(run, ranker).similar(item, k, **rules)
    if as_json:
        o.print_json({"by": answer.by, "items": answer.frame().to_dicts()})
    else:
        print(repr(answer))
