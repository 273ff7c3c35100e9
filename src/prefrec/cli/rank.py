"""`prefrec rank`: one question to a trained ranker."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from prefrec.cli import _options as o
from prefrec.data import Catalogue, RankingExample, read_prepared
from prefrec.errors import DataError
from prefrec.pipeline.score import lm_ranker


def rank(
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote: it knows the titles.")],
    history: Annotated[list[str], typer.Option(help="Title or item id, oldest first; repeat for each.")],
    candidate: Annotated[list[str], typer.Option(help="Title or item id to rank; repeat for each.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter; default: the bare base.")] = None,
    model: o.Model = "smollm2-135m",
    dtype: o.Dtype = "bfloat16",
    max_length: o.MaxLength = 1024,
    chat: o.Chat = False,
    template: o.Templates = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Rank candidates for a history of your own.

    Example: prefrec rank data/ml --adapter runs/demo/align/s-dpo/adapter --history Alien --history Aliens
    --candidate "The Terminator" --candidate Emma --candidate Babe
    """
    prepared = read_prepared(data)
    ids = [find_item(prepared.catalogue, text) for text in candidate]
    example = RankingExample("-", tuple(find_item(prepared.catalogue, h) for h in history), tuple(ids), ids[0])
    asked = o.model_section(model, dtype, max_length, chat, template)
    ranker = lm_ranker("lm", adapter, prepared, asked)
    logps = ranker.score([example])[0]
    shares = np.exp(logps - np.logaddexp.reduce(logps))
    titles = prepared.catalogue.titles_of(ids)
    rows = [
        {"item_id": ids[i], "title": titles[i], "logp": float(logps[i]), "share": float(shares[i])}
        for i in np.argsort(-logps)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("#", "title", "log-prob", "share", title="Ranking")
    for place, row in enumerate(rows, 1):
        table.add_row(str(place), str(row["title"]), f"{row['logp']:.2f}", f"{row['share']:.3f}")
    Console().print(table)


def find_item(catalogue: Catalogue, text: str) -> str:
    """The id of the item that `text` names: a title, whatever its case, else an id.

    Raises:
        DataError: there is none, or more than one; the message lists near ones.
    """
    wanted = text.strip().casefold()
    found = [i for i, title in catalogue.titles.items() if title.casefold() == wanted]
    if len(found) > 1:
        raise DataError(f"{text!r} names {len(found)} items ({', '.join(found[:5])}); give the item id")
    if found:
        return found[0]
    if text in catalogue.titles:
        return text
    titles = {t.casefold(): t for t in catalogue.titles.values()}
    near = [titles[t] for t in difflib.get_close_matches(wanted, titles, n=3, cutoff=0.5)]
    hint = f"; near ones: {', '.join(near)}" if near else ""
    raise DataError(f"no item with title or id {text!r} among {len(catalogue)}{hint}")
