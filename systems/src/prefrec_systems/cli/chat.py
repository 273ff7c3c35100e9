"""`prefrec chat`: talk about recommendations with Chat-REC."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.console import say, warn
from prefrec.data import PreparedData, seen_items
from prefrec.errors import ConfigError, DataError, PrefrecError
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.baselines import BASELINES
from prefrec.recommend.items import ItemIndex
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec_systems.chatrec import ChatRecConfig, ChatSession, Reply
from prefrec_systems.chatrec.stage import chat_rec_ranker

MORE, QUIT = "/more", "/quit"


def chat(
    run: o.RunFolder,
    /,
    *,
    user: Annotated[
        str | None,
        Parameter(help="User id. Uses the history of the user's first example in test, validation or training."),
    ] = None,
    history: Annotated[
        o.Texts,
        Parameter(help="Instead of --user: title or item id, oldest first. Repeatable."),
    ] = None,
    ask: Annotated[
        o.Texts,
        Parameter(help="Next message. Repeatable. Default: read from the terminal."),
    ] = None,
    retriever: Annotated[
        str | None, Parameter(help="Baseline such as item-kNN, or ranker of the run such as SASRec.")
    ] = None,
    keep: Annotated[int | None, Parameter(help="Items to show to the language model at a time.")] = None,
    model: Annotated[
        str | None, Parameter(help="Local model with a chat template. Default: the run's base model.")
    ] = None,
    url: Annotated[str | None, Parameter(help="Server to use instead, such as http://localhost:8000/v1.")] = None,
    served_model: Annotated[str | None, Parameter(help="Model on the server. Default: the only one.")] = None,
    max_new_tokens: Annotated[int | None, Parameter(help="Maximum tokens of an answer.")] = None,
    top: Annotated[int, Parameter(validator=Number(gte=1), help="Number of titles to print.")] = 10,
    as_json: Annotated[bool, Parameter("--json", help="Print a JSON object per reply.")] = False,
) -> None:
    """Recommend titles and talk about them: "something funnier", "why the second?".

    A retriever of the run finds items that the user has not seen. A language model orders them, gives its reason and
    answers your messages. `/more` shows the retriever's next items, `/quit` ends. The conversation is kept only in
    memory. Settings that are not given here come from the first chat-rec ranker of the recipe, if there is one.

    Example: prefrec chat runs/demo --user 42 --retriever item-kNN

    Example: prefrec chat runs/demo --history Alien --history Aliens --url http://localhost:8000/v1 --ask "Why the
    second?"
    """
    opened = open_run(run)
    server = {k: v for k, v in {"url": url, "model": served_model}.items() if v is not None}
    given = {"retriever": retriever, "keep": keep, "model": model, "max_new_tokens": max_new_tokens}
    config = _config(opened, {k: v for k, v in given.items() if v is not None}, server)
    who, known, seen = _user(opened.data, user, history or [])
    inputs = RunInputs(opened.data, "", opened.recipe.model, None, opened.recipe.seed)  # no key is needed
    ranker = chat_rec_ranker(config, inputs, _retriever(opened, config.retriever))
    fresh = [item for item in opened.data.catalogue.ids if item not in seen]
    session = ChatSession(ranker, who, known, fresh)
    for text, reply in _replies(session, ask, as_json):
        _show(opened.data, text, reply, top, as_json)


def _config(run: Run, given: dict[str, Any], server: dict[str, Any]) -> ChatRecConfig:
    """Return the run's settings of Chat-REC, if it has any, overridden by those of the command line."""
    config = next((r for r in run.recipe.rankers if isinstance(r, ChatRecConfig)), ChatRecConfig())
    settings = config.model_dump()
    if server:
        settings["server"] = {**(settings["server"] or {}), **server}
        settings["model"] = None
    elif "model" in given:
        settings["server"] = None
    return o.fill(ChatRecConfig, **{**settings, **given})


def _retriever(run: Run, name: str) -> RankerStage:
    """Return a ranker of the run that supports full ranking, or a baseline."""
    if name not in (*BASELINES, *run.plan.names):
        there = ", ".join([*BASELINES, *run.plan.names])
        raise ConfigError(f"--retriever: there is no ranker {name!r}; choose one of {there}")
    if (full := run.stage(name).full) is None:
        raise ConfigError(f"--retriever: {name} cannot rank all items; choose another ranker")
    return full


def _user(data: PreparedData, user: str | None, titles: list[str]) -> tuple[str | None, tuple[str, ...], set[str]]:
    """Return user id or None, history and the items not to recommend."""
    if (user is None) == (not titles):
        raise ConfigError("give exactly one of --user and --history")
    if user is None:
        known = tuple(item.item_id for item in ItemIndex(data.catalogue).resolve(titles))
        return None, known, set(known)
    rows = (e for split in ("test", "validation", "train") for e in data.split(split) if e.user_id == user)
    row = next(rows, None)
    if row is None:
        raise DataError(f"user {user!r} has no example in this run; give titles with --history")
    return user, row.history, seen_items(data, [row])[0]


def _replies(session: ChatSession, messages: list[str] | None, as_json: bool) -> Iterator[tuple[str | None, Reply]]:
    """Yield each message with its reply, first a recommendation. An error ends it, unless messages are typed."""
    yield None, session.recommend()
    for text in _typed() if messages is None else messages:
        if text == QUIT:
            return
        try:
            reply = session.recommend() if text == MORE else session.ask(text)
        except PrefrecError as e:
            if messages is not None:
                raise
            if as_json:
                print(json.dumps({"asked": text, "error": str(e)}, ensure_ascii=False), flush=True)
            else:
                warn(escape(str(e)))
        else:
            yield text, reply


def _typed() -> Iterator[str]:
    """Yield the non-empty lines of standard input."""
    if sys.stdin.isatty():
        say(f"Ask a question, or say what you would like. {MORE}: other titles. {QUIT}: end.")
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _show(data: PreparedData, text: str | None, reply: Reply, top: int, as_json: bool) -> None:
    titles = data.catalogue.titles_of(reply.items)
    if as_json:
        items = [{"item_id": i, "title": t} for i, t in zip(reply.items, titles, strict=True)][:top]
        answer = {"asked": text, "text": reply.text, "reason": reply.reason, "changed": reply.changed, "items": items}
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    out = Console()
    if not reply.changed:
        out.print(reply.text.strip(), markup=False, highlight=False, soft_wrap=True)
    if reply.changed or text in (None, MORE):
        for position, title in enumerate(titles[:top], start=1):
            out.print(f"{position:3}. {title}", markup=False, highlight=False, soft_wrap=True)
    if reply.reason:
        out.print(reply.reason, markup=False, highlight=False, soft_wrap=True)
