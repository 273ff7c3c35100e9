"""`prefrec audit`: check whether candidate sets give the answer away."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.data import read_prepared
from prefrec.evaluation import audit_prepared
from prefrec.report.tables import audit_table

Split = Literal["train", "validation", "test"]


def audit(
    data: o.DataFolder,
    /,
    *,
    split: Annotated[Split, Parameter(help="Split to audit.")] = "test",
    learn_from: Annotated[Split, Parameter(help="Split that the shortcuts learn from.")] = "train",
    seed: Annotated[int, Parameter(help="Random seed.")] = 0,
    strict: Annotated[
        bool,
        Parameter(
            "--strict",
            help="Exit with 1 after a leak, a protocol error, sets that can be solved without the user, or a skipped "
            "check.",
        ),
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Score shortcuts that ignore the user's taste on the candidate sets under test.

    Each line shows HR@1 with its 95% interval. A shortcut counts if it beats every baseline that knows as little:
    random order, and popularity, co-occurrence or the same rule learnt from shuffled candidate sets. A rule of
    positions or of sampling is then a leak; with a rule of item properties the sets can be solved without the user.

    Example: prefrec audit data/ml --strict
    """
    result = audit_prepared(read_prepared(data), split, learn_from, seed)
    if as_json:
        o.print_json(result.to_json())
    else:
        Console().print(audit_table(result))
    if strict and (result.leaks or result.faults or result.solving or result.untried):
        sys.exit(1)
