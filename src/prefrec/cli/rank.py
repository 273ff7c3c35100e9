"""`prefrec rank`: titles for a history, a few candidates or the whole catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from scipy.special import softmax

from prefrec.cli import _options as o
from prefrec.cli.sft import as_trained
from prefrec.data import read_prepared
from prefrec.evaluation.tables import as_table
from prefrec.pipeline.entry import lm_entry
from prefrec.pipeline.recipe import ModelSection
from prefrec.recommender import Recommender


@o.from_sections
def rank(
    data: Annotated[Path, typer.Argument(help="Folder written by `prefrec prepare`, with the titles.")],
    model: ModelSection,
    history: Annotated[list[str], typer.Option(help="Title or item id, oldest first. Repeatable.")],
    candidate: Annotated[list[str] | None, typer.Option(help="Title or item id to rank. Repeatable.")] = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="Rank all titles of the catalogue instead of candidates.")
    ] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="With --catalogue: number of titles to print. Default: 10.")
    ] = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Also rank items of the history.")] = False,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter, trained on --model. Default: the base model.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Rank candidates, or with --catalogue all titles, by any model and adapter.

    With --catalogue the prompt shows the history and no candidates. `prefrec recommend` queries the rankers of a run.

    Example: prefrec rank runs/demo/data --adapter runs/demo/align/s-dpo/adapter --history Alien
    --history Aliens --candidate "The Terminator" --candidate Emma --candidate Babe
    """
    if bool(candidate) == catalogue:
        raise typer.BadParameter("name titles to rank, or rank all with --catalogue", param_hint="--candidate")
    if not catalogue and (top or keep_seen):
        raise typer.BadParameter("needs --catalogue", param_hint="--top" if top else "--keep-seen")
    prepared, model = read_prepared(data), as_trained(model, adapter)
    recommender = Recommender(prepared, lm_entry("lm", adapter, prepared, model))
    if catalogue:
        answers = recommender.recommend(history, top or 10, exclude_seen=not keep_seen).frame()
    else:
        answers = recommender.rank(history, candidate or []).frame()
        # Probabilities among the candidates alone.
        answers = answers.with_columns(pl.Series("share", softmax(answers["score"].to_numpy())))
    answers = answers.rename({"score": "logp"}, strict=False)
    if as_json:
        o.print_json(answers.to_dicts())
    else:
        typer.echo(as_table(answers))
