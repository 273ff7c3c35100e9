"""Whether anything learns or counts validation interactions before test examples (`data.learn_validation`)."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefrec.data import RankingExample
from prefrec.errors import ConfigError
from prefrec.pipeline.measure import BOTH, TRAINING
from prefrec.pipeline.opened import Run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe
from tiny_run import ITEMS, write_shop

COUNTED = ["popularity", "co-occurrence", "item-kNN", "transition graph"]
"""Baselines without settings that validation examples choose."""
SAME = [f"u{n:02}" for n in range(10)]
"""Users whose validation items stay."""


def _recipe(folder: Path, learn_validation: bool) -> Recipe:
    """A recipe in which validation examples choose nothing but the weights of the blend."""
    files = {name: str(folder / f"{name}.csv") for name in ("interactions", "items")}
    tower = {"kind": "title-tower", "vectors": "tfidf", "width": 4, "epochs": 1, "batch_size": 8}
    return checked_recipe(
        {
            "name": "shop",
            "data": {"source": "files", **files, "unseen_items": True, "learn_validation": learn_validation},
            "rankers": [tower, {"kind": "blend", "parts": [*COUNTED, "title-tower"]}],
            "evaluate": {"zero_shot": False, "baselines": COUNTED},
        }
    )


def _write(folder: Path, seed: int | None = None) -> None:
    """Write a shop; with a seed, all users but `SAME` have other validation items, which they have not seen."""
    paths = write_shop(folder)
    log = pl.read_csv(paths["interactions"]).sort("user_id", "timestamp")
    if seed is not None:
        rng = np.random.default_rng(seed)
        items = log["item_id"].to_list()
        last = log.with_row_index("row").group_by("user_id").agg(pl.col("row").last(), seen="item_id")
        for user, row, seen in last.sort("user_id").iter_rows():
            if user not in SAME:
                items[row - 1] = str(rng.choice([i for i in (f"i{n}" for n in range(ITEMS)) if i not in seen]))
        log = log.with_columns(item_id=pl.Series(items))
    for name in ("interactions", "items"):
        paths[name].rename(folder / f"{name}.csv")
    log.write_csv(folder / "interactions.csv")


def _whole(run: Run) -> list[RankingExample]:
    """Test examples of the users `SAME`, with all items as candidates."""
    everything = tuple(sorted(run.data.catalogue.ids))
    rows = [e for e in run.data.examples("test", None) if e.user_id in SAME]
    return [replace(e, candidates=everything) for e in rows]


def _scores(run: Run) -> dict[str, np.ndarray]:
    """Scores of all rankers for the test examples of the users `SAME`."""
    assert run.plan is not None
    rows, inputs = _whole(run), run.plan.inputs
    rankers = [run.plan.stage(name).load(8) for name in ("title-tower", "blend")]
    rankers += [inputs.baseline(name, "test") for name in COUNTED]
    return {ranker.name: ranker.score(rows) for ranker in rankers}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learn", [True, False])
def test_validation_items_of_other_users_change_scores_only_if_they_are_learnt(learn, seed, tmp_path):
    runs = []
    for name, of_others in (("one", None), ("two", seed)):
        _write(tmp_path / name, of_others)
        runs.append(run_recipe(_recipe(tmp_path / name, learn), tmp_path / name / "run", until="rankers"))
    # What validation examples choose is not what is tested here.
    weights = Path("rankers/blend/blend.json")
    shutil.copy(tmp_path / "one/run" / weights, tmp_path / "two/run" / weights)
    assert _whole(runs[0]) == _whole(runs[1])
    before, after = map(_scores, runs)
    assert before.keys() == {"title-tower", "blend", *COUNTED}
    np.testing.assert_allclose(before["title-tower"], after["title-tower"])  # it is not trained again
    for name in ("blend", *COUNTED):
        assert np.allclose(before[name], after[name]) != learn, name


@pytest.mark.parametrize("learn", [True, False])
def test_a_run_says_which_log_its_rankers_have_read(learn, tmp_path):
    _write(tmp_path)
    run = run_recipe(_recipe(tmp_path, learn), tmp_path / "run", until="evaluate")
    data = run.data
    assert run.results is not None
    logs = run.results.evaluation.logs
    assert {logs[name] for name in COUNTED} == {BOTH if learn else TRAINING}
    assert logs["title-tower"] == TRAINING
    assert (logs["blend"] == TRAINING) != learn
    # The users' own validation items are in their test histories all the same.
    own = {e.user_id: e.target for e in data.validation}
    assert all(e.history[-1] == own[e.user_id] for e in data.test)
    assert data.known_interactions("test").equals(data.train_interactions) != learn


def test_a_refit_contradicts_it(tmp_path):
    raw = _recipe(tmp_path, False).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"refit: learns validation interactions.* set `refit: false`"):
        checked_recipe(raw | {"refit": True})
    assert checked_recipe(raw | {"refit": False}).refit is None
