"""`prefrec audit`: can the lists of prepared data be ranked without knowing what the user likes?"""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.data import read_prepared
from prefrec.evaluation import audit_prepared
from prefrec.report.tables import audit_table

Split = Literal["train", "validation", "test"]


def audit(
    data: o.DataFolder,
    split: Annotated[Split, typer.Option(help="Whose lists are audited.")] = "test",
    learn_from: Annotated[Split, typer.Option(help="Whose lists the shortcuts learn from.")] = "train",
    seed: Annotated[int, typer.Option(help="Fixes samples and shuffles.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 after a leak, a fault or an untried rule.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Score shortcuts that ignore what the user likes, on the very lists under test.

    Each line shows HR@1 with its 95% interval over users. A shortcut is a leak if it beats every rival that knows as
    little as it does: random, and popularity, co-occurrence or the same rule learnt from shuffled lists.
    """
    result = audit_prepared(read_prepared(data), split, learn_from, seed)
    if as_json:
        o.print_json(result.to_json())
    else:
        Console().print(audit_table(result))
    if strict and (result.leaks or result.faults or result.untried):
        raise typer.Exit(1)
