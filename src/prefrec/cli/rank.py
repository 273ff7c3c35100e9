"""`prefrec rank`: order given items by what comes next after a history."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o


def rank(
    run: o.RunFolder,
    /,
    *,
    history: Annotated[
        list[str],
        Parameter(allow_leading_hyphen=True, help="Title or item id, oldest first. Repeatable."),
    ],
    candidate: Annotated[
        list[str], Parameter(allow_leading_hyphen=True, help="Title or item id to rank. Repeatable.")
    ],
    k: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="Print the best N candidates. Default: all.")
    ] = None,
    ranker: o.RunRanker = None,
    as_json: o.AsJson = False,
) -> None:
    """Rank given items by how likely each is to come next after a history, best first.

    `recommend` ranks the whole catalogue, with filters.

    Example: prefrec rank runs/demo --history Alien --history Aliens --candidate Emma --candidate Babe
    """
    # Imported here, so that --help need not wait for the rankers.
    from prefrec.evaluation.labels import as_table
    from prefrec.recommender import Recommender

    ranking = Recommender.from_run(run, ranker).rank(history, candidate).frame()[:k]
    if as_json:
        o.print_json(ranking.to_dicts())
    else:
        print(as_table(ranking))
