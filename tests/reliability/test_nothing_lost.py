"""Kills, full disks and read-only folders: the short form; `make soak` runs the long one."""

import contextlib
import itertools
import random
import shutil

import polars as pl
import pytest

from reliability import clocks, crashes, disks
from reliability.children import call
from reliability.damage import damage_run
from reliability.kills import kill_running, kill_runs
from reliability.whole_runs import END, PARTS, differences
from reliability.works import Update, Work

KILLS, CRASHES = 2, 2


@pytest.fixture(scope="module")
def own_mounts():
    if reason := disks.why_not():
        pytest.skip(reason)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_if_nothing_had_happened(recipe, whole, tmp_path, number):
    run, seconds = whole
    killed = kill_running(
        Work(recipe, tmp_path), tmp_path, run, seconds, (number + random.Random(number).random()) / KILLS
    )
    assert not killed.lost, killed
    assert killed.stage in PARTS, killed


def test_a_killed_update_ends_as_if_nothing_had_happened_and_leaves_the_old_run(recipe, tmp_path):
    killed = next(kill_runs(Update(recipe, tmp_path), tmp_path, 1, seed=0))
    assert not killed.lost, killed
    assert killed.stage in PARTS, killed


@pytest.mark.skipif(crashes.why_not() is not None, reason=str(crashes.why_not()))
def test_runs_killed_right_after_a_change_end_as_if_nothing_had_happened(recipe, tmp_path):
    with contextlib.closing(crashes.crash_runs(recipe, tmp_path, seed=0)) as tried:
        for crash in itertools.islice(tried, CRASHES):
            assert not crash.lost, crash
            assert crash.points > 300
            assert crash.stage in PARTS


@pytest.mark.skipif(crashes.why_not() is not None, reason=str(crashes.why_not()))
def test_a_clock_that_jumps_changes_nothing(recipe, tmp_path):
    """The soak lets the clock of an update jump, too."""
    tried = [*itertools.islice(clocks.jumps(recipe, tmp_path, 0), len(clocks.KINDS))]
    assert {jumped.kind for jumped in tried} == set(clocks.KINDS)
    assert not [jumped for jumped in tried if jumped.lost]


FLIPPED = ["data/train.parquet", "align/s-dpo/adapter/adapter_model.safetensors", "predictions/sft.parquet"]
FLIPPED += ["environment.json"]
CUT = ["data/protocol.json", "align/s-dpo/stage.json", "predictions/zero-shot.parquet", "predictions.parquet"]
CUT += ["metrics.json", "recipe.yaml"]


@pytest.mark.parametrize(("way", "damaged"), [("flipped", FLIPPED), ("cut", CUT)], ids=["flipped", "cut"])
def test_damaged_files_are_told_and_made_again(recipe, whole, tmp_path, way, damaged):
    assert damage_run(recipe, tmp_path / "run", whole[0], dict.fromkeys(damaged, way), random.Random(0)) == []


@pytest.mark.parametrize("size", ["36k", "200k"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(own_mounts, recipe, whole, tmp_path, size):
    stage, wrong = call(disks.full_disk, recipe, tmp_path / "disk" / "run", whole[0], size)
    assert stage != END
    assert not wrong, (stage, wrong)


@pytest.mark.parametrize("verb", ["recommend", "export", "evaluate"])
def test_verbs_on_a_full_disk_say_so_and_go_on_when_there_is_room(own_mounts, recipe, whole, tmp_path, verb):
    assert call(disks.verb_on_full_disk, verb, recipe, whole[0], tmp_path) == []


def test_a_full_disk_leaves_older_data(own_mounts, recipe, tmp_path):
    assert not call(disks.full_disk_over_data, disks.shop_options(recipe), tmp_path / "disk" / "data")


def test_a_read_only_folder_is_told_and_left(own_mounts, recipe, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    assert not call(disks.read_only, disks.writers(recipe, run), run)


def test_differences_are_seen(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    assert differences(run, whole[0]) == []
    weights = run / "align" / "s-dpo" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    pl.read_parquet(run / "data" / "train.parquet").reverse().write_parquet(run / "data" / "train.parquet")
    (run / "metrics.json").write_text("{}")
    (run / "sft" / "checkpoint-4").mkdir()
    data, trained, *others = differences(run, whole[0])
    assert (data, others) == ("data/train.parquet", ["metrics.json", "sft/checkpoint-4 is left over"])
    assert trained.startswith("align/s-dpo: weights by ")
    assert float(trained.rpartition(" ")[2]) > 0
