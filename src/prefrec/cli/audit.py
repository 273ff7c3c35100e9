"""`prefrec audit`: can the lists of prepared data be ranked without knowing what the user likes?"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefrec.data import read_prepared
from prefrec.evaluation import audit_prepared, audit_table


class Part(StrEnum):
    """A part of prepared data."""

    train = "train"
    validation = "validation"
    test = "test"


def audit(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote.")],
    split: Annotated[Part, typer.Option(help="Whose lists are audited.")] = Part.test,
    learn_from: Annotated[Part, typer.Option(help="Whose lists the shortcuts learn from.")] = Part.train,
    seed: Annotated[int, typer.Option(help="Fixes shuffles and the bootstrap.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where a leak is found, or where a rule could not be tried.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Score shortcuts that ignore what the user likes, on the very lists under test.

    Each line shows HR@1 with its 95% interval over users. A shortcut is a LEAK where it beats every rival that
    knows as little as it does: random, and popularity, co-occurrence or the same rule learnt from shuffled lists.
    """
    found = audit_prepared(read_prepared(data), split.value, learn_from.value, seed)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        Console().print(audit_table(found))
    if strict and (found.leaks or found.untried):
        raise typer.Exit(1)
