"""`prefrec rank`: titles for a history, a few candidates or the whole catalogue."""

from __future__ import annotations

import difflib
import json
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
from prefrec.console import track
from prefrec.data import Catalogue, PreparedData, RankingExample, read_prepared, seen_items
from prefrec.errors import DataError
from prefrec.lm.catalogue import check_finite
from prefrec.pipeline.entry import lm_ranker
from prefrec.pipeline.recipe import ModelSection
from prefrec.rankers.catalogue import CatalogueRanker, Method

Question = tuple[str, set[str], list[str]]
"""User, items seen, and history."""


@o.from_sections
def rank(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder that `prefrec prepare` wrote: it knows the titles.")],
    model: ModelSection,
    history: Annotated[
        list[str] | None, typer.Option(help="Title or item id, oldest first; repeat for each.")
    ] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="Title or item id to rank; repeat for each.")] = None,
    catalogue: Annotated[bool, typer.Option("--catalogue", help="Rank all titles instead of candidates.")] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="With --catalogue: the first rows of a split instead of a history.")
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Of --rows.")] = "test",
    top: Annotated[int, typer.Option(min=1, help="With --catalogue: titles shown.")] = 10,
    method: Annotated[
        Method, typer.Option(help="With --catalogue: score every title, or search for the best ones.")
    ] = "auto",
    max_calls: Annotated[
        int | None, typer.Option(min=1, help="End a search after as many calls; it may then be unproven.")
    ] = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Leave no title out that was seen.")] = False,
    adapter: Annotated[Path | None, typer.Option(help="Adapter; default: the bare base.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Rank candidates, or with --catalogue all titles, for a history of your own.

    With --catalogue the prompt shows the history and no candidates (a template that goes on with the history,
    `--model.templates continue`, fits it best), and what the user has seen is left out.

    Example: prefrec rank runs/demo/data --adapter runs/demo/align/s-dpo/adapter --history Alien
    --history Aliens --candidate "The Terminator" --candidate Emma --candidate Babe

    Example: prefrec rank runs/demo/data --adapter runs/demo/align/s-dpo/adapter --history Alien
    --history Aliens --catalogue
    """
    _check_usage(
        history, candidate, catalogue, rows, _given(context, "split", "top", "method", "max_calls", "keep_seen")
    )
    prepared = read_prepared(data)
    if catalogue:
        questions = _questions(prepared, history or [], rows, split)
        answers = _best(questions, prepared, adapter, model, top, method, max_calls, keep_seen)
    else:
        answers = _ranked(prepared, history or [], candidate or [], adapter, model)
    if as_json:
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    elif catalogue:
        for answer in answers:
            _print_best(answer)
    else:
        _print_ranked(answers)


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


def _check_usage(
    history: list[str] | None, candidate: list[str] | None, catalogue: bool, rows: int | None, alone: Sequence[str]
) -> None:
    """Refuse options that do not go together; `alone` are those given that only --catalogue reads."""
    if catalogue and candidate:
        raise typer.BadParameter("cannot be combined with --catalogue", param_hint="--candidate")
    if not (catalogue or candidate):
        raise typer.BadParameter("name titles to rank, or rank all with --catalogue", param_hint="--candidate")
    if not catalogue and alone:
        raise typer.BadParameter("needs --catalogue", param_hint=alone[0])
    if rows and (history or not catalogue):
        raise typer.BadParameter("needs --catalogue, and takes the place of --history", param_hint="--rows")
    if not (history or rows):
        raise typer.BadParameter("name the titles to go on from", param_hint="--history")


def _given(context: typer.Context, *names: str) -> list[str]:
    """Those of these options that the command line sets."""
    set_there = [n for n in names if (source := context.get_parameter_source(n)) and source.name == "COMMANDLINE"]
    return [o.option(name) for name in set_there]


def _ranked(
    prepared: PreparedData, history: list[str], candidate: list[str], adapter: Path | None, model: ModelSection
) -> list[dict[str, Any]]:
    """The candidates, best first."""
    ids = [find_item(prepared.catalogue, text) for text in candidate]
    if twice := [text for i, text in enumerate(candidate) if ids[i] in ids[:i]]:
        raise DataError(f"--candidate {twice[0]!r}: named twice; name each title once")
    example = RankingExample("-", tuple(find_item(prepared.catalogue, h) for h in history), tuple(ids), ids[0])
    logps = lm_ranker("lm", adapter, prepared, model).score([example])[0]
    check_finite("the candidates", logps)
    shares = np.exp(logps - np.logaddexp.reduce(logps))
    titles = prepared.catalogue.titles_of(ids)
    return [
        {"item_id": ids[i], "title": titles[i], "logp": float(logps[i]), "share": float(shares[i])}
        for i in np.argsort(-logps)
    ]


def _best(
    questions: Sequence[Question],
    prepared: PreparedData,
    adapter: Path | None,
    model: ModelSection,
    top: int,
    method: Method,
    max_calls: int | None,
    keep_seen: bool,
) -> list[dict[str, Any]]:
    """For each question the best items of the catalogue."""
    ranker = CatalogueRanker(lm_ranker("lm", adapter, prepared, model))
    answers = []
    mine = processes.share([*enumerate(questions)])
    for place, (user, seen, history) in track(mine, "lm: ranking the catalogue"):
        best = ranker.recommend(history, top, without=() if keep_seen else seen, method=method, max_calls=max_calls)
        found = zip(best.item_ids, prepared.catalogue.titles_of(best.item_ids), best.logps, strict=True)
        items = [{"item_id": i, "title": title, "logp": float(logp)} for i, title, logp in found]
        about = {"user_id": user, "history": history, "method": best.method, "proven": best.proven}
        answers.append((place, {**about, "items": items}))
    return [answer for _, answer in sorted(processes.pool(answers), key=lambda found: found[0])]


def _questions(prepared: PreparedData, history: list[str], rows: int | None, split: str) -> list[Question]:
    """The history given, or those of the first rows; of a row all that its user took before it is seen."""
    if rows is None:
        shown = [find_item(prepared.catalogue, h) for h in history]
        return [("-", set(shown), shown)]
    examples = prepared.split(split)[:rows]
    seen = seen_items(prepared, examples)
    return [(e.user_id, own, list(e.history)) for e, own in zip(examples, seen, strict=True)]


def _print_ranked(rows: list[dict[str, Any]]) -> None:
    table = Table("#", "title", "log-prob", "share", title="Ranking")
    for place, row in enumerate(rows, 1):
        table.add_row(str(place), escape(row["title"]), f"{row['logp']:.2f}", f"{row['share']:.3f}")
    Console().print(table)


def _print_best(answer: dict[str, Any]) -> None:
    proven = "" if answer["proven"] else ", not proven to be the best"
    user = "" if answer["user_id"] == "-" else f" for {answer['user_id']}"
    table = Table("#", "title", "log-prob", title=escape(f"Best of the catalogue{user} ({answer['method']}{proven})"))
    for place, item in enumerate(answer["items"], 1):
        table.add_row(str(place), escape(item["title"]), f"{item['logp']:.2f}")
    Console().print(table)
