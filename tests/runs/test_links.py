"""The link to the run that is served, and which runs beside it are deleted."""

import os
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError
from prefrec.evaluation import evaluate_predictions, predict
from prefrec.rankers.baselines import RandomRanker
from prefrec.runs.links import named, point, prune, runs_of, target_of
from prefrec.runs.lock import in_use, run_lock
from prefrec.runs.results import Results, write_results
from verdicts import NONE


@pytest.fixture(scope="module")
def results():
    """Results of an evaluation."""
    rows = [RankingExample(user, ("a",), ("b", "c"), "b") for user in "uvw"]
    catalogue = Catalogue(pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]}))
    predictions = predict(RandomRanker(0), rows, catalogue, generate=False)
    return Results(evaluation=evaluate_predictions(predictions, compare=[], audit=NONE))


@pytest.fixture
def link(tmp_path, results):
    """A link to the second of four evaluated runs, beside folders that are none of its business."""
    for number in range(1, 5):
        _finished(tmp_path / f"shop.{number}", results, number)
    for other in ("shopping.1", "shop-1", "shop.backup"):  # other runs, and a folder that is no run
        (tmp_path / other).mkdir()
    for other in ("shopping.1", "shop-1"):
        (tmp_path / other / "recipe.yaml").touch()
    point(tmp_path / "shop", tmp_path / "shop.2")
    return tmp_path / "shop"


def _begun(folder, time):
    """A run that has no results yet."""
    folder.mkdir()
    (folder / "recipe.yaml").touch()
    os.utime(folder / "recipe.yaml", (time, time))


def _finished(folder, results, time):
    _begun(folder, time)
    write_results(folder, results)
    os.utime(folder / "seal.json", (time, time))


def _deleted(outcome):
    return sorted(folder.name for folder, reason in outcome.items() if not reason)


def _there(link):
    return sorted(p.name for p in link.parent.iterdir() if not p.name.startswith("."))


def test_a_link_is_relative_and_replaced_in_one_step(link, tmp_path):
    assert os.readlink(link) == "shop.2"
    draft = tmp_path / ".shop.tmp"  # left behind by a kill
    draft.mkdir()
    (draft / "shop").symlink_to("../shop.1")
    point(link, tmp_path / "shop.3")
    assert target_of(link) == tmp_path / "shop.3"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    assert target_of(tmp_path / "shop.3") is None


def test_a_folder_is_not_replaced_by_a_link(link, tmp_path):
    with pytest.raises(ConfigError, match=r"shop.3 is not a link to a run: move it"):
        point(tmp_path / "shop.3", tmp_path / "shop.1")
    with pytest.raises(ConfigError, match=r"shop.3 is not a link to a run: move it"):
        prune(tmp_path / "shop.3", 1)


def test_a_folder_without_a_name_is_not_replaced_by_a_link(link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "shop.3")
    for given in (".", "..", "/"):
        with pytest.raises(ConfigError, match="is not a link to a run"):
            point(Path(given), tmp_path / "shop.1")
        with pytest.raises(ConfigError, match="is not a link to a run"):
            prune(Path(given), 1)
    assert named(Path(".")) == tmp_path / "shop.3"
    assert named(Path("shop.3")) == Path("shop.3")


def test_runs_of_a_link_begin_with_its_name_and_the_newest_evaluation_is_first(link, tmp_path):
    assert [run.name for run in runs_of(link)] == ["shop.4", "shop.3", "shop.2", "shop.1"]
    os.utime(tmp_path / "shop.1" / "seal.json", (5, 5))
    assert [run.name for run in runs_of(link)] == ["shop.1", "shop.4", "shop.3", "shop.2"]


def test_a_name_is_no_pattern(link, tmp_path):
    """As a pattern it would also find the runs of `shop`."""
    folder = tmp_path / "sho[p].1"
    folder.mkdir()
    (folder / "recipe.yaml").touch()
    left = tmp_path / ".shop.0.pruned"
    left.mkdir()
    point(tmp_path / "sho[p]", folder)
    assert runs_of(tmp_path / "sho[p]") == [folder]
    prune(tmp_path / "sho[p]", 0)
    assert left.is_dir()


@pytest.mark.parametrize(
    ("keep", "deleted"), [(0, ["shop.1", "shop.3", "shop.4"]), (1, ["shop.1", "shop.3"]), (3, [])]
)
def test_the_served_run_and_the_newest_others_are_kept(link, keep, deleted):
    before = _there(link)
    assert _deleted(prune(link, keep, dry_run=True)) == deleted
    assert _there(link) == before
    assert _deleted(prune(link, keep)) == deleted
    assert _there(link) == [name for name in before if name not in deleted]


def test_a_failed_night_does_not_count_as_a_run_to_keep(link, tmp_path):
    _begun(tmp_path / "shop.5", 5)
    assert prune(link, 1)[tmp_path / "shop.5"] == "its evaluation is not finished, and `prefrec run` can resume it"
    assert _there(link) == ["shop", "shop-1", "shop.2", "shop.4", "shop.5", "shop.backup", "shopping.1"]


def test_a_failed_night_is_deleted_once_a_later_run_is_evaluated(link, tmp_path, results):
    _begun(tmp_path / "shop.5", 5)
    _finished(tmp_path / "shop.6", results, 6)
    assert _deleted(prune(link, 2)) == ["shop.1", "shop.3", "shop.5"]


@pytest.mark.parametrize("damaged", ["seal.json", "metrics.json"])
def test_a_run_with_damaged_results_does_not_count_as_one_to_keep(link, tmp_path, damaged):
    (tmp_path / "shop.4" / damaged).write_text("{}")
    os.utime(tmp_path / "shop.4" / "seal.json", (4, 4))
    assert _deleted(prune(link, 1)) == ["shop.1"]


def test_a_run_with_a_newer_recipe_than_its_results_does_not_count_as_one_to_keep(link, tmp_path, results):
    """As of a run that is made again in its folder, and failed."""
    _finished(tmp_path / "shop.5", replace(results, made_of={"recipe": "of before"}), 5)
    (tmp_path / "shop.5" / "recipe.yaml").write_text("seed: 7")
    assert _deleted(prune(link, 1)) == ["shop.1", "shop.3"]


def test_runs_of_a_link_with_a_longer_name_are_not_touched(link, tmp_path, results):
    left = tmp_path / ".shop.eu.0.pruned"
    left.mkdir()
    for number in (1, 2):
        _finished(tmp_path / f"shop.eu.{number}", results, number)
    point(tmp_path / "shop.eu", tmp_path / "shop.eu.2")
    assert _deleted(prune(link, 0)) == ["shop.1", "shop.3", "shop.4"]
    assert left.is_dir()
    assert _deleted(prune(tmp_path / "shop.eu", 0)) == ["shop.eu.1"]
    assert not left.exists()


def test_runs_that_are_used_locked_or_linked_are_kept(link, tmp_path):
    (tmp_path / "canary").symlink_to("shop.1")
    with in_use(tmp_path / "shop.3"), run_lock(tmp_path / "shop.4"):
        reasons = {run.name: reason for run, reason in prune(link, 0).items()}
    assert reasons.pop("shop.4").endswith("wait until it has finished, stop it, or choose another output folder")
    assert reasons == {"shop.1": "canary leads to it", "shop.2": "shop leads to it", "shop.3": "a server uses it"}


def test_a_link_that_leads_nowhere_deletes_nothing(link, tmp_path):
    link.unlink()
    link.symlink_to("shop.9")
    with pytest.raises(ConfigError, match="leads to no run, so nothing is deleted"):
        prune(link, 0)
    assert len(runs_of(link)) == 4


def test_an_interrupted_deletion_is_finished_by_the_next(link, tmp_path):
    left = tmp_path / ".shop.0.pruned"
    left.mkdir()
    prune(link, 9, dry_run=True)
    assert left.is_dir()
    prune(link, 9)
    assert not left.exists()
