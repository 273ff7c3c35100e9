"""Query a run's rankers, or an exported ranker, in Python."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from itertools import chain
from numbers import Integral
from pathlib import Path
from threading import RLock
from typing import Any, TypedDict, Unpack, cast, overload

import numpy as np
import polars as pl
from pydantic import ValidationError
from rich.markup import escape

from prefrec import processes
from prefrec.console import quiet_warnings, say, track, warn
from prefrec.data import PreparedData, Query
from prefrec.data.parquet import PARQUET, read_parquet
from prefrec.data.store import read_items
from prefrec.data.types import LOG_SCHEMA
from prefrec.errors import ConfigError, DataError, ModelError, check_finite
from prefrec.export.parts import ABOUT, EXPORTED, ITEMS, PROMPT, RECIPE, about_key, open_parts
from prefrec.extras import need
from prefrec.files import SEAL, altered, keep, kept_key, read_json, read_seal, read_whole, write_whole
from prefrec.lm.names import resolve
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.base import ListRanker, Ranker
from prefrec.rankers.config import BATCH_SIZE
from prefrec.recommend.answers import ANSWERS, Effect, Explanation, Ranked, Related, Rows
from prefrec.recommend.explain import reasons
from prefrec.recommend.items import ItemIndex
from prefrec.recommend.new_items import NewItems
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import (
    Past,
    Selection,
    answer_all,
    best_blocks,
    logged,
    logged_lists,
    logged_users,
    user_ids,
)
from prefrec.recommend.related import related_by_data, related_by_ranker, related_items
from prefrec.recommend.rules import ById, Item, Relation, Rules
from prefrec.runs.remote import address_of
from prefrec.runs.results import Results
from prefrec.runs.stage import stage_key
from prefrec.sections import ModelSection
from prefrec.settings import settings_error
from prefrec.stages.base import RankerStage
from prefrec.stages.language_model import LMStage

AnyItem = str | int | Ranked | Effect | ById | Item
"""An item in a call: its title, its id as text or number, or a row of an answer."""
Items = AnyItem | Iterable[AnyItem]
"""Items in a call; a single item is a list of one."""
Boost = Mapping[str, Mapping[Any, float]]
"""Column of the catalogue → value → factor."""


class ItemRuleArguments(TypedDict, total=False):
    """Rules of `Recommender.also_bought` and `similar`. `Recommender.recommend` says what each of them does."""

    where: str | None
    allow: Items | None
    deny: Items
    at_most: int | None
    per: str | None
    boost: Boost | None


class RuleArguments(ItemRuleArguments, total=False):
    """Rules of the methods that recommend."""

    exclude_seen: bool | None
    new_every: int | None


Log = Mapping[str, Past]
"""User → past."""
CHUNK, QUICK_CHUNK = 200, 5_000
"""Number of users of `recommend_all` whose answers are stored in one file: by language models, and by others."""
_LOADING = RLock()


class Recommender:
    """A ranker of any kind, with the items of its data. It is loaded on the first query.

    Histories are oldest first. Methods raise DataError if an item's name is unknown, and ConfigError if the ranker
    does not support a query. Threads may share a recommender. Other processes must be started by `spawn` and open
    their own recommender; a pickle or copy opens the same folder again.

    Args:
        data: items and log.
        stage: that of the ranker.
        source: folder or repository, for messages.
        check: raises DataError if the files of the ranker changed since they were opened. Called before loading.
        reopen: opens the recommender again. Default: it cannot be pickled or copied.
        results: what the evaluation of its run has measured. Default: not known.
        popular: the recent popularity of the items. Default: that in the log.
        for_new: opens the recommender that answers where seen items are excluded. Default: this one does.
        new_every: `answers.new_every` of the recipe.
    """

    def __init__(
        self,
        data: PreparedData,
        stage: RankerStage,
        source: str = "",
        *,
        check: Callable[[], None] = lambda: None,
        reopen: Callable[[], Recommender] | None = None,
        results: Results | None = None,
        popular: Popular | None = None,
        for_new: Callable[[], Recommender] | None = None,
        new_every: int = 0,
    ) -> None:
        self.data = data
        self.stage = stage
        self.source = source
        self.results = results or Results()
        self.items = ItemIndex(data.catalogue)
        self._check = check
        self._reopen = reopen
        self._for_new = for_new
        self._new = NewItems(data, new_every)
        self._loaded: dict[str, Any] = {"popular": popular} if popular else {}
        self._process = os.getpid()

    def __reduce__(self) -> Any:
        if self._reopen is None:
            raise ConfigError("a recommender of data in memory cannot be pickled or copied: open one from a folder")
        return _reopened, (self._reopen, self.stage.key)

    def __repr__(self) -> str:
        return f"<Recommender {self.stage.name} of {self.source or 'data'}, {len(self.data.catalogue):,} items>"

    @classmethod
    def from_run(cls, run: str | Path | Run, ranker: str | None = None) -> Recommender:
        """Open a ranker of a run.

        Args:
            run: folder written by `prefrec run`, its address, such as `s3://bucket/runs/shop`, or a run that is open.
            ranker: name in the results table. Default: the best ranker on validation examples (`Run.default`). For
                data that keep repeats, answers with `exclude_seen=True` are then by the best for items that are new
                to the user (`Run.for_new`).

        Raises:
            DataError: the run cannot be read, or has no such ranker.
            ConfigError: the results of the run come from a different recipe.
        """
        opened = run if isinstance(run, Run) else open_run(_lasting(run))
        folder = opened.folder if isinstance(run, Run) else run
        stage = opened.stage(ranker or opened.default())
        for_new = None if ranker else opened.for_new
        return cls(
            opened.data,
            stage,
            str(folder),
            check=partial(opened.check_unchanged, stage, opened.states(stage.name)),
            reopen=partial(cls.from_run, address_of(folder) or opened.folder.absolute(), ranker and stage.name),
            results=opened.results,
            for_new=partial(cls.from_run, opened, for_new) if for_new else None,
            new_every=opened.recipe.answers.new_every,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Recommender:
        """Open an exported ranker. It accepts histories but no users, because exports contain no log.

        Args:
            folder: folder written by `prefrec export`, or a Hugging Face repository such as `me/films-s-dpo`.

        Raises:
            ModelError: the repository cannot be read.
            DataError: the folder is not an export, or is damaged.
        """
        path = _lasting(folder)
        place: str | Path = path if path.is_dir() else folder
        if not path.is_dir():
            need("lm", f"{folder} is not a folder, and a repository of the hub")
            from huggingface_hub import snapshot_download

            try:
                path = Path(snapshot_download(str(folder)))
            except (OSError, ValueError) as e:
                raise ModelError(f"{folder} is not a folder, and it cannot be downloaded from the hub: {e}") from e
        try:
            about = _about(path)
            name = str(about["ranker"])
            model = ModelSection(**about["model"])
            parts = about.get("parts")
            if parts is not None:
                for_new = about.get("for_new")
                data, stages, answers = open_parts(path, [name, *([for_new] if for_new else [])], model.name)
            else:
                config = {"repeats": about.get("repeats", "drop")}
                log = pl.DataFrame(schema=LOG_SCHEMA)
                items = read_items(path / ITEMS)
                data = PreparedData(items, [], [], [], log, {"config": config})
                # Exports of earlier versions lack it.
                popular = Popular.read(items.frame, about["popularity"]) if "popularity" in about else None
        except (OSError, ValueError, TypeError, KeyError, DataError) as e:
            raise DataError(
                f"{path} was not written by `prefrec export`, or is damaged: export the ranker again ({e})"
            ) from e
        opened: Any = {"check": partial(_check_export, path, about), "reopen": partial(cls.from_pretrained, place)}
        if parts is not None:
            opened["new_every"] = answers.new_every
            if for_new:
                opened["for_new"] = partial(cls, data, stages[1], str(folder), **opened | {"reopen": None})
            return cls(data, stages[0], str(folder), **opened)
        model.name = model.name or str(path)
        if model.answers == "titles":
            model.templates = [str(path / PROMPT)]
        try:
            resolve(model.name)
        except ModelError as e:
            raise ModelError(f"{path / ABOUT}: model.name: {e}") from e
        return cls(data, LMStage(name, path, data, model), str(folder), popular=popular, **opened)

    @overload
    def recommend(
        self, history: Sequence[list[AnyItem] | tuple[AnyItem, ...]], k: int = ...
    ) -> list[Rows[Ranked]]: ...
    @overload
    def recommend(
        self,
        history: Items = ...,
        k: int = ...,
        *,
        user: str | int | None = ...,
        **rules: Unpack[RuleArguments],
    ) -> Rows[Ranked]: ...
    def recommend(
        self,
        history: Any = (),
        k: int = 10,
        *,
        user: str | int | None = None,
        where: str | None = None,
        allow: Items | None = None,
        deny: Items = (),
        exclude_seen: bool | None = None,
        at_most: int | None = None,
        per: str | None = None,
        boost: Boost | None = None,
        new_every: int | None = None,
    ) -> Any:
        """Return the best items of the catalogue after a history.

        Args:
            history: items, oldest first; or a list of histories. An empty one gets the items that are popular now,
                whose scores are numbers of interactions.
            k: number of items.
            user: user of the run's log, whose items are put before the history.
            where: SQL condition on the catalogue's columns, such as `genre = 'Comedy' and year > 1990`.
            allow: recommend only these items. Default: all.
            deny: items to exclude.
            exclude_seen: exclude the history and all items that the user has seen. Default: yes, but not for data
                with `repeats: keep`.
            at_most: maximum number of items with the same value in the column `per`. Default: no limit.
            per: catalogue column to which `at_most` applies.
            boost: catalogue column → value → factor, such as `{"brand": {"Acme": 2}}`. With the factor 2 an item at
                place 10 comes to place 5, with 0.5 to place 20. The factors of an item multiply. Scores remain those
                of the ranker.
            new_every: one place in every N goes to an item without interactions in the log: the best of them by the
                ranker, or by titles if it does not tell them apart, whose score is then the similarity. 0: none.
                Default: `answers.new_every` of the recipe.

        Returns:
            The items, best first; for a list of histories, a list of such answers.
        """
        rules: RuleArguments = {"where": where, "allow": allow, "deny": deny, "exclude_seen": exclude_seen}
        rules |= {"at_most": at_most, "per": per, "boost": boost, "new_every": new_every}
        if (asked := self._answering(exclude_seen)) is not self:
            return asked.recommend(history, k, user=user, **rules)
        selection = self._selection(k, **rules)
        batch = [*history] if isinstance(history, list | tuple) else []
        is_batch = bool(batch) and all(isinstance(one, list | tuple) for one in batch)
        last, seen, times = self._log_of(user)
        pasts = []
        for one in batch if is_batch else [history]:
            (past,) = self._ids(one)
            pasts.append(Past([*last, *past], [*seen, *past], times))
        answers = self._best(pasts, selection)
        return answers if is_batch else answers[0]

    def also_bought(self, item: AnyItem, k: int = 10, **rules: Unpack[ItemRuleArguments]) -> Related:
        """Return what customers of an item also had, and the name of what ranked it (`by`).

        These are complements, such as a lamp for a tent. They are ranked by the ranker, if its score is a sum over
        history items that comes from the log (window co-occurrence, item-kNN, EASE, co-occurrence), otherwise by
        item-kNN.

        Args:
            item: the item.
            k: number of items; fewer if fewer have a score above 0.
            **rules: `where`, `allow`, `deny`, `at_most`, `per` and `boost`, as for `recommend`.

        Raises:
            DataError: an exported language model has no log.
        """
        return self._related("also_bought", item, k, rules)

    def similar(self, item: AnyItem, k: int = 10, **rules: Unpack[ItemRuleArguments]) -> Related:
        """Return the items that are most similar to an item, and the name of what ranked them (`by`).

        These are substitutes, such as another tent. They are ranked by the cosine of item vectors, if the ranker has
        some (title towers, item-ID tokens), otherwise by that of titles (title TF-IDF).

        Args:
            item: the item.
            k: number of items; fewer if fewer have a score above 0.
            **rules: `where`, `allow`, `deny`, `at_most`, `per` and `boost`, as for `recommend`.
        """
        return self._related("similar", item, k, rules)

    def _related(self, relation: Relation, item: AnyItem, k: int, rules: ItemRuleArguments) -> Related:
        selection = self._selection(k, exclude_seen=True, new_every=0, **rules)
        ((known,),) = self._ids([item])
        by = cast(Ranker, self._once(relation, lambda: self._related_ranker(relation)))
        best = related_items(by, selection.question([known], [known]))
        return Related(self._ranked(best.item_ids, best.logps), by.name)

    def _related_ranker(self, relation: Relation) -> Ranker:
        # A language model takes seconds to load, and has only item vectors, if its answers are items.
        model = self.stage.model
        is_asked = model is None or (relation == "similar" and model["answers"] == "items")
        own = related_by_ranker(relation, self._on_candidates) if is_asked else None
        return own or related_by_data(relation, self.data)

    def rank(self, history: Items, candidates: Items) -> Rows[Ranked]:
        """Rank candidates after a history, best first.

        Args:
            history: items, oldest first.
            candidates: items to rank, each once.

        Raises:
            DataError: a candidate occurs twice.
        """
        past, choices = self._ids(history, candidates)
        if not choices:
            return Rows()
        (scores,) = self._on_candidates.score([Query(past, choices)])
        check_finite(self.stage.name, scores)
        order = np.argsort(-scores, kind="stable")
        return self._ranked([choices[i] for i in order], scores[order])

    def explain(
        self,
        history: Items = (),
        item: AnyItem | None = None,
        candidates: Items = (),
        *,
        user: str | int | None = None,
    ) -> Explanation:
        """Return how much each history item adds to the score of an item.

        The effects of a ranker whose score is a sum over history items (window co-occurrence, item-kNN, title TF-IDF,
        EASE, co-occurrence, title towers) are exact. Those of others are by leave-one-out: the score with the item,
        minus the score without it; for a language model in nats. They are measured for the last 50 history items, and
        the score is that of the whole history. Effects of a blend are also given by its parts.

        Args:
            history: items, oldest first.
            item: the item to explain.
            candidates: items among which it is scored. Default: the catalogue, and none in prompts that list them.
            user: user of the run's log, whose items are put before the history.

        Raises:
            DataError: there is no item to explain.
            ConfigError: the ranker can only score candidates, and there are none.
        """
        if item is None:
            raise DataError("item: name the item to explain")
        past, choices = self._ids(history, candidates)
        ((target,),) = self._ids([item])
        last, _, times = self._log_of(user)
        past = (*last, *past)
        is_listed = bool(choices) or self.stage.model is not None
        ranker = self._on_candidates if is_listed else self._on_catalogue
        listed = choices if is_listed else tuple(self.data.catalogue.ids)
        found = reasons(ranker, Query(past, listed, history_times=tuple(times)), target)
        titles = self.data.catalogue.titles
        shares = [{name: part[n] for name, part in found.parts.items()} for n in range(len(found.effects))]
        pairs = zip(found.effects, shares, strict=True)
        effects = [Effect(i, titles[i], effect, parts) for (i, effect), parts in pairs]
        unread = len(past) - len(effects) - found.not_explained
        return Explanation(effects, self.stage.name, (target, titles[target]), found, unread)

    def recommend_all(
        self,
        out: str | Path | None = None,
        k: int = 10,
        *,
        users: str | int | Iterable[str | int] | None = None,
        histories: Mapping[Any, Items] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> pl.DataFrame:
        """Return the best items for many users, as a frame with the columns `ANSWERS`.

        The same call resumes after an interruption. The processes of a job share the users.

        Args:
            out: file to write, .parquet or .csv; finished answers are stored beside it until it is complete.
            k: number of items per user.
            users: users of the log. Default: all.
            histories: user → history, instead of users of the log.
            **rules: `where`, `allow`, `deny`, `exclude_seen`, `at_most`, `per` and `boost`, as for `recommend`.
        """
        blocks = self.recommend_blocks(out, k, users=users, histories=histories, **rules)
        return pl.concat([pl.DataFrame(schema=ANSWERS), *blocks])

    def recommend_blocks(
        self,
        out: str | Path | None = None,
        k: int = 10,
        *,
        users: str | int | Iterable[str | int] | None = None,
        histories: Mapping[Any, Items] | None = None,
        **rules: Unpack[RuleArguments],
    ) -> Iterator[pl.DataFrame]:
        """Yield the answers of `recommend_all` in blocks of users, for more answers than fit into memory.

        Arguments are as for `recommend_all`. The file `out` is complete when all blocks have been read.
        """
        self._check_process()
        if users is not None and histories is not None:
            raise ConfigError("users, histories: give one of them")
        if (asked := self._answering(rules.get("exclude_seen"))) is not self:
            return asked.recommend_blocks(out, k, users=users, histories=histories, **rules)
        is_csv = _is_csv(out)
        selection = self._selection(k, **rules)
        if histories is None:
            self._check_log()
            lists = logged_lists(self.data, None if users is None else user_ids(users))
            last = self.data.history_length
        else:
            lists, last = self._given_lists(histories), 0
        return self._blocks(Path(out) if out else None, is_csv, selection, lists, last)

    def _blocks(
        self, out: Path | None, is_csv: bool, selection: Selection, lists: pl.DataFrame, last: int
    ) -> Iterator[pl.DataFrame]:
        """Yield the answers for users of a frame like that of `logged_lists`, whose `last` items are the history."""
        parts = out and out.with_name(f".{out.name}.parts")
        rules = selection.rules.model_dump()
        about: Any = {"ranker": self.stage.key, "model": self.stage.model, "rules": rules, "k": selection.k}
        size = CHUNK if self.stage.model or isinstance(self._on_catalogue, ListRanker) else QUICK_CHUNK
        blocks = range(0, len(lists), size)
        kept: list[Path] = []
        for start in track(blocks, f"{self.stage.name}: {len(lists):,} users"):
            block = lists[start : start + size]
            pasts = {user: logged(items, times, touched, last) for user, items, times, touched in block.iter_rows()}
            part = parts and parts / f"{stage_key(**about, users=pasts)}.parquet"
            yield self._part(part, pasts, selection)
            kept += [part] if part else []
        processes.wait()
        if out and parts and processes.is_first():
            # In a stream, because all answers together may not fit into memory.
            answers = pl.scan_parquet(kept) if kept else pl.LazyFrame(schema=ANSWERS)
            write_whole(out, answers.sink_csv if is_csv else answers.sink_parquet)
            shutil.rmtree(parts, ignore_errors=True)

    def _given_lists(self, histories: Mapping[Any, Items]) -> pl.DataFrame:
        """Return histories by user as a frame like that of `logged_lists`."""
        users = user_ids(histories.keys(), "histories")
        named = [[_name(item) for item in _listed(history)] for history in histories.values()]
        # Each name is looked up once, since many histories have the same items.
        names = [*dict.fromkeys(chain.from_iterable(named))]
        ids = {name: item.item_id for name, item in zip(names, self.items.resolve(names), strict=True)}
        rows = {user: [ids[name] for name in history] for user, history in zip(users, named, strict=True)}
        if len(rows) < len(users):
            twice = next(user for user in users if users.count(user) > 1)
            raise DataError(
                f"histories: two keys stand for user {twice!r}, as 1 and '1' do; keep one history per user"
            )
        listed = pl.List(pl.String())
        frame = pl.DataFrame({"user_id": [*rows], "items": [*rows.values()]}, {"user_id": pl.String, "items": listed})
        return frame.with_columns(times=pl.lit([], pl.List(pl.Int64())), touched=pl.lit([], listed))

    def _part(self, kept: Path | None, pasts: Log, selection: Selection) -> pl.DataFrame:
        """Return the answers for some users, read from the file `kept` if it exists, otherwise written to it."""
        if kept and processes.from_first(kept_key(kept) is not None if processes.is_first() else None):
            return read_parquet(kept)
        frame = self._frame(pasts, selection)
        if kept and processes.is_first():
            keep(kept, frame.write_parquet)
        return frame

    def _frame(self, pasts: Log, selection: Selection) -> pl.DataFrame:
        """Return the answers for some users, with the columns `ANSWERS`."""
        if self.stage.model or selection.for_new:
            answers = zip(pasts, self._best(pasts.values(), selection), strict=True)
            rows = [(user, *astuple(row)) for user, ranking in answers for row in ranking]
            return pl.DataFrame(rows, schema=ANSWERS, orient="row")
        users = pl.Series([*pasts], dtype=pl.String)
        questions = [selection.question(*past) for past in pasts.values()]
        ids = selection.items
        items = {"item_id": pl.Series(ids), "title": pl.Series(self.data.catalogue.titles_of(ids))}
        frames, first = [pl.DataFrame(schema=ANSWERS)], 0
        for best in best_blocks(self._on_catalogue, questions):
            begins = np.searchsorted(best.questions, best.questions)
            columns = {"user_id": users[first + best.questions], "rank": np.arange(len(begins)) - begins + 1}
            columns |= {name: values[best.items] for name, values in items.items()}
            frames.append(pl.DataFrame(columns | {"score": best.scores}).cast(ANSWERS))
            first += len(best.by_popularity)
        return pl.concat(frames)

    @property
    def _on_candidates(self) -> Ranker:
        return cast(Ranker, self._once("candidates", lambda: self._load(self.stage)))

    @property
    def _on_catalogue(self) -> Ranker:
        full = self.stage.full
        if full is None:
            raise ConfigError(f"{self.stage.name} cannot rank the full catalogue: give it candidates")
        if self.stage.model:  # a language model is the same for both kinds of queries, so it is loaded once
            from prefrec.rankers.catalogue import CatalogueRanker  # here, because it needs torch

            return cast(Ranker, self._once("catalogue", lambda: CatalogueRanker(cast(Any, self._on_candidates))))
        return cast(Ranker, self._once("catalogue", lambda: self._load(full)))

    @property
    def _popular(self) -> Popular | None:
        return cast("Popular | None", self._once("popular", lambda: Popular.of(self.data)))

    def _load(self, stage: RankerStage) -> Ranker:
        self._check()
        return stage.load(BATCH_SIZE)

    def _once(self, name: str, load: Callable[[], Any]) -> Any:
        """Return what `load` returns, which is called once, although threads may ask at the same time."""
        if name not in self._loaded:
            self._check_process()  # before the lock, which another thread may have held when a process was forked
            with _LOADING, quiet_warnings():
                if name not in self._loaded:
                    self._loaded[name] = load()
        return self._loaded[name]

    def _ids(self, *lists: Items) -> list[tuple[str, ...]]:
        named = self.items.resolve_lists(*([_name(item) for item in _listed(items)] for items in lists))
        return [tuple(item.item_id for item in items) for items in named[: len(lists)]]

    def _known_ids(self, rule: str, given: Items) -> list[str]:
        """Return the ids of a rule's items, with a warning about unknown names."""
        names = [_name(item) for item in _listed(given)]
        matches = [self.items.named(name) for name in names]
        if unknown := [name for name, ids in zip(names, matches, strict=True) if not ids]:
            first = unknown[0] if isinstance(unknown[0], str) else unknown[0].item_id
            more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            warn(escape(f"{rule}: no item has the title or id {first!r}{more}"))
        return [item for ids in matches for item in ids]

    def _log_of(self, user: str | int | None) -> Past:
        """Return the past of a user of the log, or an empty one."""
        if user is None:
            return Past((), ())
        self._check_log()
        (past,) = logged_users(self.data, user_ids(user, "user")).values()
        return past

    def _check_log(self) -> None:
        """Raise DataError if there is no log of users."""
        self._check_process()
        if self.data.train_interactions.is_empty() or self.data.protocol.get(EXPORTED):
            raise DataError("an exported ranker has no log of users: give histories")

    def _selection(self, k: int, **given: Unpack[RuleArguments]) -> Selection:
        """Return the rules of a call, checked and applied to the catalogue; errors are those of `Selection`."""
        if any(given.get(rule) is not None for rule in ("where", "allow", "per")):
            self._check_process()
        raw: dict[str, Any] = {**given, "deny": self._known_ids("deny", given.get("deny", ()))}
        if (allow := given.get("allow")) is not None:
            raw["allow"] = self._known_ids("allow", allow)
        raw["boost"] = _by_text(given.get("boost") or {})
        try:
            rules, repeats = Rules.model_validate(raw), self.data.keeps_repeats
        except ValidationError as e:
            raise settings_error(e, Rules) from e
        selection = Selection(self.data.catalogue, rules, k, self._popular, repeats=repeats, new=self._new)
        for column, value in selection.unmatched:
            warn(escape(f"boost: no item has the {column} {value!r}"))
        return selection

    def _answering(self, exclude_seen: bool | None) -> Recommender:
        """Return the recommender that answers under this rule: another one where only new items are asked for."""
        if not exclude_seen or self._for_new is None:
            return self
        return cast(Recommender, self._once("for new", self._open_for_new))

    def _open_for_new(self) -> Recommender:
        assert self._for_new is not None
        other = self._for_new()
        say(
            escape(f"{other.stage.name} answers, the best for items that are new to the user; else {self.stage.name}")
        )
        return other

    def _check_process(self) -> None:
        """Raise ConfigError in a fork of the process that opened the recommender."""
        if os.getpid() != self._process:
            raise ConfigError(
                "this process is a fork of the one that opened the recommender, and polars would wait forever for "
                "threads that do not exist here: use multiprocessing.get_context('spawn'), and open a recommender in "
                "each process"
            )

    def _best(self, pasts: Iterable[Past], selection: Selection) -> list[Rows[Ranked]]:
        questions = [selection.question(*past) for past in pasts]
        answers = answer_all(self._on_catalogue, questions)
        rankings = [self._ranked(best.item_ids, best.logps) for best in answers]
        for ranking in rankings:
            ranking.ranker = self.stage.name
        return rankings

    def _ranked(self, ids: Sequence[str], scores: Iterable[float]) -> Rows[Ranked]:
        rows = zip(ids, self.data.catalogue.titles_of(ids), scores, strict=True)
        return Rows(Ranked(rank, i, title, float(score)) for rank, (i, title, score) in enumerate(rows, 1))


def _reopened(reopen: Callable[[], Recommender], key: str) -> Recommender:
    """Return a pickled recommender, opened again; raise DataError if its folder holds another ranker by now."""
    recommender = reopen()
    if recommender.stage.key != key:
        raise DataError(
            f"{recommender.source}: {recommender.stage.name} changed after the recommender was pickled: open it again"
        )
    return recommender


def _lasting(place: str | Path) -> Path:
    """Return a folder as an absolute path, for the working directory may change before it is read again."""
    path = Path(place)
    return path.absolute() if path.is_dir() else path


def _about(path: Path) -> dict[str, Any]:
    """Return the settings of an exported ranker; raise DataError if a file of it is missing or damaged."""
    about = dict(json.loads(read_whole(path / ABOUT)))
    broken = altered(path, read_seal(path, ITEMS if about.get("parts") is None else RECIPE))
    broken += [ABOUT] if read_json(path / SEAL).get(ABOUT) != about_key(about) else []
    if broken:
        raise DataError(", ".join(broken))
    return about


def _check_export(path: Path, opened: Mapping[str, Any]) -> None:
    """Raise DataError if an exported ranker changed since it was opened with these settings."""
    try:
        is_same = _about(path) == opened
    except (OSError, ValueError, TypeError, KeyError, DataError):
        is_same = False
    if not is_same:
        raise DataError(f"{path} changed after it was opened: open it again")


def _listed(given: Any) -> list[Any]:
    """Return items or users as a list; a single one becomes a list of one."""
    if given is None:
        return []
    return [given] if isinstance(given, str | Integral | Ranked | Effect | ById | Item) else list(given)


def _name(item: Any) -> str | ById:
    """Return an item's name in the form that `ItemIndex` accepts."""
    if isinstance(item, str):
        return item
    if isinstance(item, Integral):
        return ById(item_id=str(item))
    if isinstance(item, Ranked | Effect | ById | Item):
        return ById(item_id=item.item_id)
    raise DataError(
        f"{item!r}: give an item by its title or id, or as a row of an answer, not as {type(item).__name__}"
    )


def _by_text(boost: Any) -> Any:
    """Return a boost with texts in place of numbers, as in JSON; other forms unchanged, which `Rules` refuse."""
    if not isinstance(boost, Mapping) or not all(isinstance(by_value, Mapping) for by_value in boost.values()):
        return boost
    # A truth value of a catalogue is `true` as text, in Python `True`.
    return {
        column: {str(v).lower() if isinstance(v, bool) else str(v): factor for v, factor in by_value.items()}
        for column, by_value in boost.items()
    }


def _is_csv(out: str | Path | None) -> bool:
    """Return True if the name of a file of answers ends in .csv; raise ConfigError if it is not Parquet either."""
    suffix = Path(out or "").suffix.lower()
    if suffix not in ("", ".csv", *PARQUET):
        raise ConfigError(f"{out}: answers are written as Parquet or CSV; use a name that ends in .parquet or .csv")
    return suffix == ".csv"
