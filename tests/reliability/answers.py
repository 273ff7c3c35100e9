"""Answers to batches, to the default ranker, and of a recommender whose run was replaced: right, or an error."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from prefrec import Recommender
from prefrec.errors import ConfigError, DataError
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.baselines import servable
from prefrec_server.server import open_engine

Case = tuple[str, list[str]]
"""What was tried, and what of it was lost."""

LARGEST = 60
"""Most histories of a batch; more than the catalogue of the tiny runs has items for a blend's block."""
CLOSE = 1e-3
"""Largest difference of scores of a tiny language model in float32 between batches."""


def batches(run: Path, seed: int) -> Iterator[Case]:
    """Ask every ranker of a run random batches; each answer must be that to its history alone."""
    opened, rng = open_run(run), random.Random(seed)
    rankers = {name: Recommender.from_run(run, name) for name in names_of(opened)}
    while True:
        for name, rec in rankers.items():
            yield name, wrong_in_batch(rec, rng)


def names_of(run: Run) -> list[str]:
    """Names of a run's rankers: language models, further ones and baselines, but not random order."""
    further = [config.name for config in run.recipe.rankers]
    baselines = [name for name in servable(run.data.train_interactions) if name in run.recipe.evaluate.baselines]
    return [name for name in dict.fromkeys([*run.models, *further, *baselines]) if name != "random"]


def wrong_in_batch(rec: Recommender, rng: random.Random) -> list[str]:
    """Ask a batch as a list and for users with any ids; return what differs from the answers one by one."""
    ids = rec.data.catalogue.ids
    count, k, some = rng.choice([2, 3, 41, 42, LARGEST]), rng.randint(1, 12), rng.choice([ids[:1], ids])
    histories = [rng.sample(some, rng.randint(1, min(4, len(some)))) for _ in range(count)]
    users: list[Any] = rng.sample([*range(count), *(f"u{n:02}" for n in range(count))], count)
    close = CLOSE if rec.stage.model is not None else 1e-9
    lost = []
    for exclude_seen in (True, False):
        alone = [_pairs(rec.recommend(history, k, exclude_seen=exclude_seen)) for history in histories]
        given = dict(zip(users, histories, strict=True))
        frame = rec.recommend_all(k=k, histories=given, exclude_seen=exclude_seen)
        ways = {"for users": [_of_user(frame, user) for user in users]}
        if exclude_seen:
            ways["as a list"] = [_pairs(rows) for rows in rec.recommend(histories, k)]
        for way, answers in ways.items():
            wrong = sum(not _alike(a, b, close) for a, b in zip(alone, answers, strict=True))
            lost += [f"{wrong} of {count} answers {way} are other ones (k={k})"] if wrong else []
    return lost


def _pairs(rows: Any) -> list[tuple[str, float]]:
    return [(row.item_id, row.score) for row in rows]


def _of_user(frame: pl.DataFrame, user: Any) -> list[tuple[str, float]]:
    return list(frame.filter(pl.col("user_id") == str(user)).select("item_id", "score").iter_rows())


def _alike(one: list[tuple[str, float]], other: list[tuple[str, float]], close: float) -> bool:
    """Return True for equal scores, and equal items but for those whose scores are close to a neighbour's."""
    if len(one) != len(other) or any(abs(a - b) > close for (_, a), (_, b) in zip(one, other, strict=True)):
        return False
    scores = dict(one)
    return all(abs(scores.get(item, one[-1][1]) - score) <= close for item, score in other)


def wrong_default(run: Path) -> list[str]:
    """Return the interfaces whose default ranker is not the one that the run calls the best on validation rows."""
    opened = open_run(run)
    if opened.results.best is None:
        return ["the run has no best ranker"]
    best = opened.results.best.among(opened.results.best.values)
    engine = open_engine(opened)
    defaults = {"Run": opened.default(), "Recommender": Recommender.from_run(run).stage.name}
    defaults["server"] = engine.rankers[0]
    engine.close()
    return [f"the default of {door} is {name}, not {best}" for door, name in defaults.items() if name != best]


def mixed(runs: Sequence[Path], folder: Path, seed: int) -> Iterator[Case]:
    """Replace a run under an open recommender by another one; it must raise an error or answer as before."""
    rng = random.Random(seed)
    for number in itertools.count():
        old, new = rng.sample([*runs], 2)
        run = shutil.copytree(old, folder / f"mixed-{number}")
        name = rng.choice([n for n in names_of(open_run(old)) if n in names_of(open_run(new))])
        rec, want = Recommender.from_run(run, name), _asked(Recommender.from_run(old, name))
        if asked_before := rng.random() < 0.5:
            _asked(rec)
        _replace(run, new, rng)
        case = f"{name} of a run that was replaced {'after' if asked_before else 'before'} its first question"
        yield case, wrong_after(lambda rec=rec: _asked(rec), want)
        shutil.rmtree(run)


def _replace(run: Path, new: Path, rng: random.Random) -> None:
    """Give a run the files of another one: all, or some, as while it is being written."""
    files = [p.relative_to(new) for p in sorted(new.rglob("*")) if p.is_file()]
    for file in files if rng.random() < 0.5 else rng.sample(files, rng.randint(1, len(files))):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new / file, run / file)


def _asked(rec: Recommender) -> list[list[tuple[str, float]]]:
    ids = rec.data.catalogue.ids
    return [_pairs(rec.recommend([ids[n], ids[-n]], 5)) for n in range(1, 6)]


def wrong_after(ask: Callable[[], Any], want: Any) -> list[str]:
    """Return what is wrong about an answer that must be `want`, or a DataError or ConfigError."""
    try:
        answer = ask()
    except (DataError, ConfigError):
        return []
    except Exception as e:  # noqa: BLE001  # is lost, and must not end the part
        return [f"{type(e).__name__} escaped: {e}"]
    return [] if answer == want else ["an answer of neither the run that was opened, nor an error"]
