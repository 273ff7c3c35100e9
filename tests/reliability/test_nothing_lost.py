"""Kills, full disks and read-only folders: the short form; `make soak` runs the long one."""

from __future__ import annotations

import random
import shutil

import polars as pl
import pytest

from reliability import disks
from reliability.kills import kill_run
from reliability.whole_runs import END, differences

KILLS = 3


@pytest.fixture(scope="module")
def own_mounts():
    if reason := disks.why_not():
        pytest.skip(reason)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_ends_as_if_nothing_had_happened(recipe, whole, tmp_path, number):
    run, seconds = whole
    moment = (number + random.Random(number).random()) / KILLS
    killed = kill_run(recipe, tmp_path / "run", run, seconds, moment)
    assert not killed.lost, killed


@pytest.mark.parametrize("size", ["36k", "200k"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(own_mounts, recipe, whole, tmp_path, size):
    stage, wrong = disks.full_disk(recipe, tmp_path / "disk" / "run", whole[0], size)
    assert stage != END
    assert not wrong, (stage, wrong)


def test_a_full_disk_leaves_older_data(own_mounts, recipe, tmp_path):
    assert not disks.full_disk_over_data(disks.shop_options(recipe), tmp_path / "disk" / "data")


def test_a_read_only_folder_is_told_and_left(own_mounts, recipe, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    assert not disks.read_only(disks.writers(recipe, run), run)


def test_differences_are_seen(whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    assert differences(run, whole[0]) == []
    weights = run / "align" / "s-dpo" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    table = pl.read_parquet(run / "data" / "train.parquet")
    table.reverse().write_parquet(run / "data" / "train.parquet")
    (run / "metrics.json").write_text("{}")
    (run / "sft" / "checkpoint-4").mkdir()
    assert differences(run, whole[0]) == [
        "data/train.parquet",
        "align/s-dpo: weights",
        "metrics.json",
        "sft/checkpoint-4 is left over",
    ]
