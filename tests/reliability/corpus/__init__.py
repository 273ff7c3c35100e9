"""Malformed inputs, each with the place and the way out that its message must name. The table is `CASES`."""

from reliability.corpus import arguments, bodies, catalogues, folders, logs, published, recipes, sources, templates
from reliability.corpus.case import Case, Place, make_place, verdict

__all__ = ["CASES", "Case", "Place", "make_place", "verdict"]

CASES: list[Case] = [
    case
    for part in (logs, catalogues, published, sources, recipes, templates, folders, bodies, arguments)
    for case in part.CASES
]
