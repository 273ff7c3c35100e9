"""A recommender in three lines of Python: from a run, or from two frames, to answers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from huggingface_hub import snapshot_download
from pydantic import ValidationError

from prefrec import processes
from prefrec.console import track
from prefrec.data import PreparedData, RankingExample
from prefrec.data.readers import PARQUET, read_parquet
from prefrec.data.store import read_items
from prefrec.data.types import LOG_SCHEMA
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.files import SEAL, altered, keep, kept_key, read_json, read_seal, read_whole, write_whole
from prefrec.lm.catalogue import check_finite
from prefrec.lm.models import resolve
from prefrec.pipeline.entry import Entry, lm_entry
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import ModelSection, checked_recipe, load_recipe, preset
from prefrec.pipeline.run import run_recipe
from prefrec.rankers import CatalogueRanker, LMRanker, Ranker
from prefrec.rankers.config import settings_error
from prefrec.rankers.explain import leave_one_out
from prefrec.rankers.lm import BATCH_SIZE
from prefrec.runs.stage import stage_key
from prefrec.serving.bodies import ById, ItemBody, Rules
from prefrec.serving.export import ABOUT, ITEMS, about_key
from prefrec.serving.export_parts import EXPORTED, PROMPT, RECIPE, open_parts
from prefrec.serving.items import ItemIndex
from prefrec.serving.questions import Selection, answer_all, asked_users

CHUNK = 200
"""Users of `recommend_all` whose answers are kept together."""
_LOADING = RLock()


@dataclass(frozen=True, slots=True)
class Ranked:
    """A line of a ranking, `rank` from 1. The score of a language model is the log-probability of the title."""

    rank: int
    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class Effect:
    """An item of a history; `effect` (nats) is above 0 if it speaks for the title that is explained."""

    item_id: str
    title: str
    effect: float


ANSWERS = pl.Schema({"user_id": str, "rank": int, "item_id": str, "title": str, "score": float})
"""Columns of the answers of `recommend_all`."""
Row = TypeVar("Row", Ranked, Effect)
Item = str | int | Ranked | Effect | ById | ItemBody
"""An item as callers give it: its title, its id, or a row of an answer."""
Log = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""User → the items of the history that is asked about, and all items taken."""


class Rows(list[Row]):
    """A list of rows that prints as a table, and as HTML in a notebook."""

    def frame(self) -> pl.DataFrame:
        """Return the rows as a polars frame."""
        return pl.DataFrame([asdict(row) for row in self])

    def __repr__(self) -> str:
        return as_table(self.frame())

    def _repr_html_(self) -> str:
        return as_table(self.frame(), "_repr_html_")


def as_table(frame: pl.DataFrame, form: str = "__str__") -> str:
    """Return all rows of a frame as text, or in another `form` that frames have."""
    options: Any = {"tbl_rows": -1, "fmt_str_lengths": 60, "float_precision": 3}
    with pl.Config(**options, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        return str(getattr(frame, form)())


class Recommender:
    """A ranker of any kind that answers about the items of some data. The first question loads it.

    Histories are oldest first. Methods raise DataError if an item's name is unknown, ConfigError if the ranker cannot
    answer such a question. Threads may share a recommender; further processes are started by `spawn` and open their
    own.
    """

    def __init__(self, data: PreparedData, entry: Entry, source: str = "") -> None:
        self.data = data
        self.entry = entry
        self.source = source
        self.items = ItemIndex(data.catalogue)
        self._loaded: dict[str, Ranker] = {}
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<Recommender {self.entry.name} of {self.source or 'data'}, {len(self.data.catalogue):,} items>"

    @classmethod
    def from_run(cls, folder: str | Path, ranker: str | None = None) -> Recommender:
        """Return a ranker of a run; None: the best one on validation rows (`Run.default`).

        Raise DataError if the run cannot be read or has no such ranker, ConfigError if another recipe made it.
        """
        run = open_run(Path(folder))
        return cls(run.data, run.entry(ranker or run.default()), str(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Recommender:
        """Return the ranker in a folder of `prefrec export`, or in a repository of the hub, such as `me/films-s-dpo`.

        It knows ids and titles of items, but no log, so it takes histories and no users. Raise ModelError if the
        repository cannot be read, DataError if the folder is not an export, or is damaged.
        """
        path = Path(folder)
        if not path.is_dir():
            try:
                path = Path(snapshot_download(str(folder)))
            except (OSError, ValueError) as e:
                raise ModelError(f"{folder} is not a folder, and cannot be read from the hub: {e}") from e
        try:
            about = json.loads(read_whole(path / ABOUT))
            parts = about.get("parts")
            broken = altered(path, read_seal(path, ITEMS if parts is None else RECIPE))
            broken += [ABOUT] if read_json(path / SEAL).get(ABOUT) != about_key(about) else []
            if broken:
                raise DataError(", ".join(broken))
            name, model = str(about["ranker"]), ModelSection(**about["model"])
            if parts is not None:
                data, entry = open_parts(path, name, model.name)
                return cls(data, entry, str(folder))
            data = PreparedData(read_items(path / ITEMS), [], [], [], pl.DataFrame(schema=LOG_SCHEMA))
        except (OSError, ValueError, TypeError, KeyError, DataError) as e:
            raise DataError(
                f"{path} is not a folder of `prefrec export`, or is damaged: export it again ({e})"
            ) from e
        model.name = model.name or str(path)
        if model.answers == "titles":
            model.templates = [str(path / PROMPT)]
        try:
            resolve(model.name)
        except ModelError as e:
            raise ModelError(f"{path / ABOUT}: model.name: {e}") from e
        return cls(data, lm_entry(name, path, data, model), str(folder))

    def recommend(
        self, history: Sequence[Item] = (), k: int = 10, *, user: str | int | None = None, **rules: Any
    ) -> Rows[Ranked]:
        """Return the `k` best items of the whole catalogue after a history, which a user's items in the log precede.

        `rules` are the fields of `prefrec.serving.bodies.Rules`, such as `where` and `deny`.
        """
        shown, _ = self._ids(history)
        last, seen = self._logged([str(user)])[str(user)] if user is not None else ((), ())
        return self._best({"-": ([*last, *shown], [*seen, *shown])}, k, self._selection(rules))[0]

    def rank(self, history: Sequence[Item], candidates: Sequence[Item]) -> Rows[Ranked]:
        """Return the candidates, best first. Raise DataError if one is named twice."""
        shown, listed = self._ids(history, candidates)
        if not listed:
            return Rows()
        # No ranker reads the target, so the first candidate stands for it.
        (scores,) = self._on_lists.score([RankingExample("-", shown, listed, listed[0])])
        check_finite(self.entry.name, scores)
        order = np.argsort(-scores, kind="stable")
        return self._ranked([listed[i] for i in order], scores[order])

    def explain(self, history: Sequence[Item], item: Item, candidates: Sequence[Item] = ()) -> Rows[Effect]:
        """Return the log-probability of a title minus that without each item of the history that the prompt shows."""
        if self.entry.model is None:
            raise ConfigError(f"{self.entry.name} cannot be explained: only language models of the main line can")
        shown, listed = self._ids(history, candidates)
        (target,), _ = self._ids([item])
        effects = leave_one_out(cast(LMRanker, self._on_lists), RankingExample("-", shown, listed, target))
        return Rows(Effect(i, self.data.catalogue.titles[i], effect) for i, effect in effects)

    def recommend_all(
        self,
        out: str | Path | None = None,
        k: int = 10,
        *,
        users: Iterable[str] | None = None,
        histories: Mapping[str, Sequence[Item]] | None = None,
        **rules: Any,
    ) -> pl.DataFrame:
        """Return the `k` best items for each user of the log, or those `users`, or these `histories` by user.

        The frame has the columns of `ANSWERS`, and is written to `out` as Parquet, or as CSV if its name ends so.
        Answers so far are kept beside it: the same call goes on where an earlier one was stopped. The processes of a
        job share the users.
        """
        self._check_process()
        is_csv = _is_csv(out)
        if histories is None:
            asked = self._logged(None if users is None else list(users))
        else:
            given = {user: self._ids(history)[0] for user, history in histories.items()}
            asked = {user: (items, items) for user, items in given.items()}
        selection = self._selection(rules)
        parts = Path(out).with_name(f".{Path(out).name}.parts") if out else None
        about = {"ranker": self.entry.key, "model": self.entry.model, "rules": selection.rules.model_dump(), "k": k}
        pairs = [*asked.items()]
        frames = [pl.DataFrame(schema=ANSWERS)]
        for start in track(range(0, len(pairs), CHUNK), f"{self.entry.name}: {len(pairs)} users"):
            some = dict(pairs[start : start + CHUNK])
            kept = parts / f"{stage_key(**about, users=some)}.parquet" if parts else None
            frames.append(self._part(kept, some, k, selection))
        answers = pl.concat(frames)
        processes.wait()
        if out and parts and processes.is_first():
            write_whole(Path(out), answers.write_csv if is_csv else answers.write_parquet)
            shutil.rmtree(parts, ignore_errors=True)
        return answers

    def _part(self, kept: Path | None, asked: Log, k: int, selection: Selection) -> pl.DataFrame:
        """Return the answers to some users, from the file `kept` if it holds them; they are written there."""
        if kept and processes.from_first(kept_key(kept) is not None if processes.is_first() else None):
            return read_parquet(kept)
        best = zip(asked, self._best(asked, k, selection), strict=True)
        rows = [(user, *astuple(row)) for user, ranking in best for row in ranking]
        frame = pl.DataFrame(rows, schema=ANSWERS, orient="row")
        if kept and processes.is_first():
            keep(kept, frame.write_parquet)
        return frame

    @property
    def _on_lists(self) -> Ranker:
        with _LOADING:  # `cached_property` would load once per thread
            if "lists" not in self._loaded:
                self._loaded["lists"] = self.entry.load(BATCH_SIZE)
            return self._loaded["lists"]

    @property
    def _on_catalogue(self) -> Ranker:
        if self.entry.load_full is None:
            raise ConfigError(f"{self.entry.name} cannot be asked about the whole catalogue: rank candidates")
        with _LOADING:
            if "catalogue" not in self._loaded:
                # A language model is the same for both, and is loaded once.
                lm = cast(LMRanker, self._on_lists) if self.entry.model else None
                self._loaded["catalogue"] = CatalogueRanker(lm) if lm else self.entry.load_full(BATCH_SIZE)
            return self._loaded["catalogue"]

    def _ids(self, *lists: Sequence[Item]) -> list[tuple[str, ...]]:
        names = ([str(i) if isinstance(i, str | int) else ById(item_id=i.item_id) for i in items] for items in lists)
        return [tuple(item.item_id for item in items) for items in self.items.resolve_lists(*names)]

    def _logged(self, users: list[str] | None) -> Log:
        self._check_process()
        if self.data.train_interactions.is_empty() or self.data.protocol.get(EXPORTED):
            raise DataError("an exported ranker knows no users: give histories")
        return asked_users(self.data, users)

    def _selection(self, rules: dict[str, Any]) -> Selection:
        if rules:
            self._check_process()
        try:
            return Selection(self.data.catalogue, Rules.model_validate(rules))
        except ValidationError as e:
            raise settings_error(e, Rules) from e

    def _check_process(self) -> None:
        """Raise ConfigError in a fork of the process that opened the recommender."""
        if os.getpid() != self._process:
            raise ConfigError(
                "this process is a fork of the one that opened the recommender, and polars would wait for threads "
                "that it does not have: use multiprocessing.get_context('spawn'), and open one in each process"
            )

    def _best(self, asked: Log, k: int, selection: Selection) -> list[Rows[Ranked]]:
        questions = [selection.question(*items, k, user) for user, items in asked.items()]
        answers = answer_all(self._on_catalogue, questions, self.data.catalogue)
        return [self._ranked(best.item_ids, best.logps) for best in answers]

    def _ranked(self, ids: Sequence[str], scores: Iterable[float]) -> Rows[Ranked]:
        rows = zip(ids, self.data.catalogue.titles_of(ids), scores, strict=True)
        return Rows(Ranked(rank, i, title, float(score)) for rank, (i, title, score) in enumerate(rows, 1))


def _is_csv(out: str | Path | None) -> bool:
    """Return True for a file of answers that is CSV by its name; raise ConfigError if it is not Parquet either."""
    suffix = Path(out or "").suffix.lower()
    if suffix not in ("", ".csv", *PARQUET):
        raise ConfigError(f"{out}: answers are written as Parquet or CSV; end the name in .parquet or .csv")
    return suffix == ".csv"


def fit(
    interactions: Any, items: Any, recipe: str | Path | Mapping[str, Any] = "fast", *, out: str | Path | None = None
) -> Recommender:
    """Train on two frames as `prefrec run` does, and return the best ranker of the run on validation rows.

    Args:
        interactions: polars or pandas frame with `user_id`, `item_id`, `timestamp` and perhaps `rating`, or with the
            names in the recipe's `data.columns`.
        items: frame with `item_id`, `title` and further columns.
        recipe: name of a preset, YAML file, or a recipe's values. The frames replace its source of data.
        out: folder of the run; None: runs/NAME. The same call goes on where an earlier one was stopped.
    """
    if isinstance(recipe, Mapping):
        raw = dict(recipe)
    elif isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        raw = preset(cast(Any, recipe))
    else:
        raw = load_recipe(Path(recipe)).model_dump(mode="json")
    raw.setdefault("name", Path(out).name if out else "fit")
    folder = Path(out or Path("runs") / raw["name"]).resolve()
    frames = {"interactions": interactions, "items": items}
    files = {name: folder / "input" / f"{name}.parquet" for name in frames}
    raw["data"] = {**raw.get("data", {}), "source": "files", "path": None, **{n: str(f) for n, f in files.items()}}
    checked = checked_recipe(raw)
    for name, file in files.items() if processes.is_first() else ():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, pl.DataFrame(frames[name]).write_parquet)
    processes.wait()
    run_recipe(checked, folder)
    return Recommender.from_run(folder)
