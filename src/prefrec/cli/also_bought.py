"""`prefrec also-bought`: list what customers of an item also had."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.cli.similar import print_related
from prefrec.recommend.rules import ItemRules


def also_bought(
    run: o.RunFolder,
    item: Annotated[str, Parameter(allow_leading_hyphen=True, help="Title or item id.")],
    /,
    *,
    k: Annotated[int, Parameter(validator=Number(gte=1), help="Number of items.")] = 10,
    ranker: o.RunRanker = None,
    as_json: o.AsJson = False,
    section: o.Own[ItemRules] = o.untouched(ItemRules),
) -> None:
    """List what customers of an item also had (complements), with filters and boosts.

    The log ranks these: by the ranker, if its score is a sum over history items that comes from the log (window
    co-occurrence, item-kNN, EASE, co-occurrence), otherwise by item-kNN.

    Example: prefrec also-bought runs/demo Alien --k 5
    """
    print_related("also_bought", run, ranker, item, k, section, as_json)
