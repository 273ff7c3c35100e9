"""Compare what two runs serve: their default rankers, as they would answer, on examples that neither has learnt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.markup import escape

from prefrec import processes
from prefrec.console import quiet_warnings, say, warn
from prefrec.data import PreparedData, RankingExample
from prefrec.data.seen import items_before
from prefrec.errors import ConfigError, PrefrecError, StorageError
from prefrec.evaluation.best import METRIC
from prefrec.evaluation.intervals import Interval, Means, PairedDifference, Result
from prefrec.evaluation.labels import metric_label
from prefrec.evaluation.metrics import Floats, metrics_for
from prefrec.files import read_json, write_json
from prefrec.pipeline.best import ROWS, SLOW_ROWS
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.config import BATCH_SIZE
from prefrec.recipe import reached
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import Selection, answer_all
from prefrec.recommend.rules import Rules
from prefrec.runs.links import check_link, point, target_of
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage

SUCCESSION = "succession.json"
"""File in a run's folder with its comparison with the run before."""
K = 10
"""Number of items in an answer."""


@dataclass(frozen=True, eq=False)
class Succession(Result):
    """The rankers that two runs serve by default, and what they answer to the same histories.

    Attributes:
        before, after: name of the default ranker of each run.
        folders: names of the folders of the two runs.
        group: what the examples are.
        reason: why the answers are not compared; "" if they are.
        old, new: NDCG@10 of each, on all items of its own catalogue.
        difference: new minus old.
        for_new: the same for answers without the items that a user has, if one of the runs has another ranker for
            these (`Run.for_new`).
    """

    before: str
    after: str
    folders: tuple[str, str]
    group: str = ""
    reason: str = ""
    old: Interval | None = None
    new: Interval | None = None
    difference: PairedDifference | None = None
    for_new: Succession | None = None

    @property
    def is_worse(self) -> bool:
        """True if the interval of a difference is below 0."""
        is_worse = self.difference is not None and self.difference.high < 0
        return is_worse or (self.for_new is not None and self.for_new.is_worse)

    @property
    def sentence(self) -> str:
        """Whether the defaults change, and how the answers compare."""
        of_new = f". For items that are new to the user: {self.for_new.sentence}" if self.for_new else ""
        return self._own_sentence + of_new

    @property
    def _own_sentence(self) -> str:
        earlier, later = self.folders
        text = f"{self.after} is the default of {later}, as of {earlier}. "
        if self.after != self.before:
            text = f"The default changes: {self.before} in {earlier}, {self.after} in {later}. "
        if self.difference is None or self.old is None or self.new is None:
            return text + f"Not compared: {self.reason}"
        d = self.difference
        interval = "no interval" if np.isnan(d.low) else f"{d.low:+.3f}, {d.high:+.3f}"
        text += f"{metric_label(METRIC)} of the served answers on {d.n:,} {self.group}: {self.old.mean:.3f} before, "
        return f"{text}{self.new.mean:.3f} now, {d.mean:+.3f} [{interval}]"


@quiet_warnings()
def compare_served(before: Run, after: Run, most: int = ROWS) -> Succession:
    """Compare the default rankers of two runs on the newest test examples of the second one.

    The newest are those whose target is not in the log of the first run. If there are none, as when a recipe has
    changed but not the log, they are those that the first run has not learnt. Each ranker gets the histories as a
    server of its run would: without items that are not in its catalogue, and with its popularity for empty ones. A
    target that is not in its catalogue is missed. If a run has another default for items that are new to the user,
    both are also compared by their answers without the items that a user has, on targets that are new to the user.
    The result is kept in `SUCCESSION` in the second run's folder.

    Args:
        before: the run that is served.
        after: the run that might take its place.
        most: maximum number of examples; at most `SLOW_ROWS` for rankers that read titles one by one.

    Raises:
        DataError, ConfigError, ModelError: a default ranker is missing, damaged or made with another recipe.
    """
    runs = [(run, run.stage(run.default())) for run in (before, after)]
    of_new = [(run, run.stage(run.for_new or stage.name)) for run, stage in runs]
    has_shelves = any(run.for_new for run, _ in runs)
    asked = [*runs, *of_new] if has_shelves else runs
    if any(_is_slow(run, stage) for run, stage in asked):
        most = min(most, SLOW_ROWS)
    key = stage_key(entries=[[stage.key, stage.model] for _, stage in asked], most=most, test=_targets(after.data))
    folders = before.folder.resolve().name, after.folder.resolve().name
    kept = read_json(after.folder / SUCCESSION)
    if kept.get("key") == key and kept.get("folders") == [*folders]:
        return Succession.from_json({name: value for name, value in kept.items() if name != "key"})
    rows, group = _rows(before, after, most)
    reason = "" if rows else f"{folders[0]} has learnt all test examples of {folders[1]}"
    seen = items_before(after.data, rows)
    result = _compared(runs, folders, rows, seen, group, reason)
    if has_shelves:
        is_new = [example.target not in known for example, known in zip(rows, seen, strict=True)]
        rows, seen = list(compress(rows, is_new)), list(compress(seen, is_new))
        reason = reason or ("" if rows else "no target is new to its user")
        compared = _compared(
            of_new, folders, rows, seen, f"{group}, with targets that are new to the user", reason, True
        )
        result = replace(result, for_new=compared)
    if processes.is_first():
        with suppress(StorageError):  # a run that can only be read
            write_json(after.folder / SUCCESSION, result.to_json() | {"key": key})
    return result


def _compared(
    runs: Sequence[tuple[Run, RankerStage]],
    folders: tuple[str, str],
    rows: Sequence[RankingExample],
    seen: Sequence[Collection[str]],
    group: str,
    reason: str,
    exclude_seen: bool | None = None,
) -> Succession:
    """Return the comparison of a ranker of each run; `reason` says why there are no examples."""
    names = [stage.name for _, stage in runs]
    unable = [f"{stage.name} cannot rank the whole catalogue" for _, stage in runs if stage.full is None]
    result = Succession(names[0], names[1], folders, reason=(unable or [reason])[0])
    if result.reason:
        return result
    say(f"{' and '.join(names)}: answering {len(rows)} histories as {' and '.join(folders)} would")
    rules = Rules(exclude_seen=exclude_seen)
    values = {n: _ndcg(run, stage, rows, seen, rules) for n, (run, stage) in enumerate(runs)}
    means = Means(values, [e.user_id for e in rows], [e.target for e in rows])
    return replace(result, group=group, old=means.mean(0), new=means.mean(1), difference=means.difference(1, 0))


def _targets(data: PreparedData) -> list[tuple[Any, ...]]:
    """Return the targets of the test examples by the columns that identify interactions."""
    return data.targets(data.test).rows()


def _is_slow(run: Run, stage: RankerStage) -> bool:
    """Return True if a ranker reads titles one by one, or a part of it does."""
    needs = run.recipe.needs
    parts = reached(needs, stage.name) if stage.name in needs else [stage.name]
    return any(run.stage(part).is_slow for part in parts)


def _rows(before: Run, after: Run, most: int) -> tuple[list[RankingExample], str]:
    """Return the examples to compare on, and what they are."""
    data, identity = before.data, [*after.data.identity]

    def known_in(logs: Sequence[pl.DataFrame]) -> set[tuple[Any, ...]]:
        return {key for log in logs for key in log.select(identity).iter_rows()}

    learnt = known_in([data.train_interactions, data.validation_interactions])
    logged = known_in(data.logs)
    targets = _targets(after.data)
    for known, group in ((logged, "newest test examples"), (learnt, "test examples, which both have not learnt")):
        if rows := [e for e, key in zip(after.data.test, targets, strict=True) if key not in known]:
            return replace(after.data, test=rows).examples("test", most), group
    return [], ""


def _ndcg(
    run: Run, stage: RankerStage, rows: Sequence[RankingExample], seen: Sequence[Collection[str]], rules: Rules
) -> Floats:
    """Return NDCG@10 [B] of the answers that a run would serve after the histories of some examples.

    `seen` are the items [B] that the user had before, which the rules or the data may exclude.
    """
    assert stage.full is not None
    catalogue = run.data.catalogue
    known = catalogue.index
    selection = Selection(catalogue, rules, K, Popular.of(run.data), repeats=run.data.keeps_repeats)
    questions: list[Any] = []
    for example, other in zip(rows, seen, strict=True):
        is_whole = known.keys() >= {*example.history}
        history = [item for item in example.history if item in known]
        without = {item for item in (*example.history, *other) if item in known} - {example.target}
        questions.append(selection.question(history, without, example.history_times if is_whole else ()))
    answers = answer_all(stage.full.load(BATCH_SIZE), questions)
    ranks = [
        answer.item_ids.index(example.target) + 1 if example.target in answer.item_ids else K + 1
        for example, answer in zip(rows, answers, strict=True)
    ]
    return metrics_for([K])[METRIC](np.array(ranks))


def switch(link: Path, folder: Path, *, force: bool = False) -> Succession | None:
    """Let a link lead to a run, unless the run answers worse than the one that it leads to now.

    Args:
        link: the link, which is created if it does not exist.
        folder: of the run.
        force: switch although the run is worse.

    Returns:
        The comparison of the two runs; None if the link led to no run that can be opened, or to this one.

    Raises:
        DataError, ConfigError, ModelError: the run cannot be served, because a ranker is missing or damaged.
        ConfigError: the run is worse, or there is something other than a link.
        StorageError: the link cannot be written.
    """
    check_link(link)
    after, served, found = open_run(folder.resolve()), target_of(link), None
    for name in dict.fromkeys(filter(None, (after.default(), after.for_new, *after.models))):
        after.stage(name)
    if served and served != after.folder:
        try:
            found = compare_served(open_run(served), after)
        except (PrefrecError, OSError) as e:
            warn(escape(f"{served} cannot be compared with: {e}"))
    if found and found.is_worse and not force:
        stays = f"{link} still leads to {found.folders[0]}, because {found.folders[1]} is worse"
        raise ConfigError(f"{stays}. {found.sentence}. To switch nevertheless: --force")
    point(link, after.folder)
    return found
