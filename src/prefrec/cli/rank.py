"""`prefrec rank`: titles for a history, a few candidates or the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefrec import processes
from prefrec.cli import _options as o
from prefrec.cli.sft import as_trained
from prefrec.console import track
from prefrec.data import Catalogue, PreparedData, RankingExample, read_prepared, seen_items
from prefrec.errors import DataError
from prefrec.lm.catalogue import check_finite
from prefrec.pipeline.entry import lm_ranker
from prefrec.pipeline.recipe import ModelSection
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.lm import LMRanker
from prefrec.serving.items import ItemIndex

Question = tuple[str, set[str], list[str]]
"""User, items seen, and history."""
CATALOGUE_ONLY = ("split", "top", "keep_seen")
"""Options that need --catalogue."""


@o.from_sections
def rank(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote: it knows the titles.")],
    model: ModelSection,
    history: Annotated[list[str] | None, typer.Option(help="Title or item id, oldest first; repeatable.")] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="Title or item id to rank; repeatable.")] = None,
    catalogue: Annotated[bool, typer.Option("--catalogue", help="Rank all titles instead of candidates.")] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="First rows of a split, instead of --history.")] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Of --rows.")] = "test",
    top: Annotated[int, typer.Option(min=1, help="With --catalogue: titles shown.")] = 10,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Also rank titles that were seen.")] = False,
    adapter: Annotated[Path | None, typer.Option(help="Adapter, and its --model; default: the bare base.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Rank candidates, or with --catalogue all titles, for a history of your own.

    With --catalogue the prompt shows the history and no candidates (a template that goes on with the history,
    `--model.templates continue`, fits it best), and what the user has seen is left out.

    Example: prefrec rank runs/demo/data --adapter runs/demo/align/s-dpo/adapter --history Alien
    --history Aliens --candidate "The Terminator" --candidate Emma --candidate Babe

    Example: prefrec rank runs/demo/data --adapter runs/demo/align/s-dpo/adapter --history Alien
    --history Aliens --catalogue
    """
    _check_usage(context)
    prepared, model = read_prepared(data), as_trained(model, adapter)
    given = [*(history or []), *(candidate or [])]
    found = find_items(prepared.catalogue, given)
    shown, ids = found[: len(history or [])], found[len(history or []) :]
    if not catalogue:
        if twice := [text for i, text in enumerate(candidate or []) if ids[i] in ids[:i]]:
            raise DataError(f"--candidate {twice[0]!r}: named twice; name each title once")
        lm = lm_ranker("lm", adapter, prepared, model)
        answers = _rank_candidates(lm, shown, ids)
    else:
        questions = _questions(prepared, shown, rows, split)
        ranker = CatalogueRanker(lm_ranker("lm", adapter, prepared, model))
        answers = _rank_catalogue(ranker, questions, top, keep_seen)
    if as_json:
        o.print_json(answers)
    elif catalogue:
        for answer in answers:
            user = "" if answer["user_id"] == "-" else f" for {answer['user_id']}"
            _print_items(f"Best of the catalogue{user}", answer["items"])
    else:
        _print_items("Ranking", answers)


def find_items(catalogue: Catalogue, texts: Sequence[str]) -> list[str]:
    """Return the ids of the items with these titles or ids, as the server finds them; DataError if one is unknown."""
    index = ItemIndex(catalogue)
    return [index.resolve([text])[0].item_id for text in texts]


def _check_usage(context: typer.Context) -> None:
    history, candidate, catalogue, rows = map(context.params.get, ("history", "candidate", "catalogue", "rows"))
    sources = {name: context.get_parameter_source(name) for name in CATALOGUE_ONLY}
    given = [o.option(name) for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if catalogue and candidate:
        raise typer.BadParameter("cannot be combined with --catalogue", param_hint="--candidate")
    if not (catalogue or candidate):
        raise typer.BadParameter("name titles to rank, or rank all with --catalogue", param_hint="--candidate")
    if not catalogue and given:
        raise typer.BadParameter("needs --catalogue", param_hint=given[0])
    if rows and (history or not catalogue):
        raise typer.BadParameter("needs --catalogue, and takes the place of --history", param_hint="--rows")
    if not (history or rows):
        raise typer.BadParameter("name the titles to go on from", param_hint="--history")


def _rank_candidates(lm: LMRanker, history: Sequence[str], ids: list[str]) -> list[dict[str, Any]]:
    """Return the candidates, best first."""
    logps = lm.score([RankingExample("-", tuple(history), tuple(ids), ids[0])])[0]
    check_finite("the candidates", logps)
    shares = np.exp(logps - np.logaddexp.reduce(logps))
    titles = lm.catalogue.titles_of(ids)
    # Shares are probabilities among the candidates alone.
    return [
        {"item_id": ids[i], "title": titles[i], "logp": float(logps[i]), "share": float(shares[i])}
        for i in np.argsort(-logps, kind="stable")
    ]


def _questions(data: PreparedData, history: list[str], rows: int | None, split: str) -> list[Question]:
    """Return the given history, or those of the first rows of a split."""
    if rows is None:
        return [("-", set(history), history)]
    examples = data.split(split)[:rows]
    seen = seen_items(data, examples)
    return [(e.user_id, items, list(e.history)) for e, items in zip(examples, seen, strict=True)]


def _rank_catalogue(
    ranker: CatalogueRanker, questions: Sequence[Question], top: int, keep_seen: bool
) -> list[dict[str, Any]]:
    """Return the best items of the catalogue for each question; all processes of a job share the work."""
    answers = []
    part = processes.share([*enumerate(questions)])
    for number, (user, seen, history) in track(part, "lm: ranking the catalogue"):
        best = ranker.recommend(history, top, without=() if keep_seen else seen)
        ranked = zip(best.item_ids, ranker.lm.catalogue.titles_of(best.item_ids), best.logps, strict=True)
        items = [{"item_id": i, "title": title, "logp": float(logp)} for i, title, logp in ranked]
        answer = {"user_id": user, "history": history, "method": best.method, "proven": best.proven, "items": items}
        answers.append((number, answer))
    return [answer for _, answer in sorted(processes.pool(answers), key=lambda numbered: numbered[0])]


def _print_items(title: str, items: list[dict[str, Any]]) -> None:
    shares = ["share"] if any("share" in item for item in items) else []
    table = Table("#", "title", "log-prob", *shares, title=escape(title))
    for number, item in enumerate(items, 1):
        cells = [f"{item['logp']:.2f}", *(f"{item[share]:.3f}" for share in shares)]
        table.add_row(str(number), escape(item["title"]), *cells)
    Console().print(table)
