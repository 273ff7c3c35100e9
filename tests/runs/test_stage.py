"""A stage's folder: finished, unfinished, made from something else, half written."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from prefrec.clock import Seconds, credit_cached_time
from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json, write_text
from prefrec.runs.stage import STAGE_FILE, file_facts, is_finished, last_checkpoint, machine, stage, stage_key


def test_key_depends_on_values_not_on_their_order():
    assert stage_key(a=1, b={"x": 1, "y": 2}) == stage_key(b={"y": 2, "x": 1}, a=1)
    assert len({stage_key(a=1), stage_key(a=2), stage_key(b=1), stage_key(a=1.5), stage_key()}) == 5


def test_a_stage_that_ends_is_finished(tmp_path):
    folder = tmp_path / "sft"
    assert not is_finished(folder, "k")
    with stage(folder, "k", "sft", {"rows": 3}) as where:
        assert where == folder
        assert not is_finished(folder, "k")
        assert read_json(folder / STAGE_FILE)["finished"] is False
    assert is_finished(folder, "k")
    assert not is_finished(folder, "other")
    state = json.loads((folder / STAGE_FILE).read_text())
    assert state.pop("peak_bytes") > 0
    assert state.pop("environment") == machine()
    assert state == {
        "key": "k",
        "kind": "sft",
        "config": {"rows": 3},
        "finished": True,
        "seconds": pytest.approx(0, abs=1),
        "cpu_seconds": pytest.approx(0, abs=1),
        "shared_seconds": 0,
        "shared_cpu_seconds": 0,
    }


def test_parts_of_a_stage_add_up_and_the_peak_is_the_highest(tmp_path):
    before = {"key": "k", "finished": False, "seconds": 5.0, "cpu_seconds": 7.0, "peak_bytes": 1 << 60}
    write_json(tmp_path / "sft" / STAGE_FILE, before)
    with stage(tmp_path / "sft", "k", "sft", {}):
        pass
    state = read_json(tmp_path / "sft" / STAGE_FILE)
    assert state["seconds"] >= 5
    assert state["cpu_seconds"] >= 7
    assert state["peak_bytes"] == 1 << 60


def test_what_an_earlier_stage_left_is_counted_once(tmp_path):
    def shared():
        state = read_json(tmp_path / "s-dpo" / STAGE_FILE)
        return state["shared_seconds"], state["shared_cpu_seconds"]

    credit_cached_time(Seconds(100, 100))  # before the stage: none of its business
    with suppress(KeyboardInterrupt), stage(tmp_path / "s-dpo", "k", "align", {}):
        time.sleep(0.1)
        credit_cached_time(Seconds(30.04, 50.04))
        raise KeyboardInterrupt
    assert read_json(tmp_path / "s-dpo" / STAGE_FILE)["finished"] is False
    assert shared() == (30.0, 50.0)
    with stage(tmp_path / "s-dpo", "k", "align", {}):
        credit_cached_time(Seconds(30.04, 50.04))  # the resumed stage finds the same again
    assert shared() == (30.0, 50.0)


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path):
    folder = tmp_path / "sft"

    def stopped_stage():
        with stage(folder, "k", "sft", {}):
            (folder / "checkpoint").write_text("half")
            state = read_json(folder / STAGE_FILE)
            write_json(folder / STAGE_FILE, state | {"seconds": 5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_stage()
    assert not is_finished(folder, "k")
    write_json(folder / STAGE_FILE, read_json(folder / STAGE_FILE) | {"seconds": 5.0})
    with stage(folder, "k", "sft", {}):
        assert (folder / "checkpoint").read_text() == "half"
    assert is_finished(folder, "k")
    assert read_json(folder / STAGE_FILE)["seconds"] >= 5
    assert not (tmp_path / "sft.previous").exists()


def test_another_key_moves_the_outcome_aside_and_keeps_one(tmp_path):
    folder = tmp_path / "s-dpo"
    for key in ("one", "two", "three"):
        with stage(folder, key, "align", {}):
            assert sorted(p.name for p in folder.iterdir()) == [STAGE_FILE]
            (folder / "adapter").write_text(key)
    assert (folder / "adapter").read_text() == "three"
    assert (tmp_path / "s-dpo.previous" / "adapter").read_text() == "two"
    assert is_finished(tmp_path / "s-dpo.previous", "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-dpo", "s-dpo.previous"]


def _made(folder, key, *, stopped=False):
    with suppress(KeyboardInterrupt), stage(folder, key, "align", {}):
        (folder / "adapter").write_text(key)
        if stopped:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stopped", [False, True])
def test_what_was_moved_aside_comes_back_when_it_is_wanted(tmp_path, stopped):
    folder, previous = tmp_path / "s-dpo", tmp_path / "s-dpo.previous"
    _made(folder, "one", stopped=stopped)
    _made(folder, "two")
    for wanted, other in (("one", "two"), ("two", "one"), ("one", "two")):
        assert is_finished(folder, wanted) == (wanted == "two" or not stopped)
        assert [(p / "adapter").read_text() for p in (folder, previous)] == [wanted, other]
    with stage(folder, "one", "align", {}):
        assert (folder / "adapter").read_text() == "one"
    shutil.rmtree(folder)
    assert is_finished(folder, "two")
    assert [p.name for p in tmp_path.iterdir()] == ["s-dpo"]


@pytest.mark.parametrize("wanted", ["one", "two"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch, at, wanted):
    folder, rename, done = tmp_path / "s-dpo", Path.rename, []
    for key in ("one", "two"):
        _made(folder, key)

    def killed(self, target):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            is_finished(folder, "one")
    assert is_finished(folder, wanted)
    assert (folder / "adapter").read_text() == wanted
    assert (tmp_path / "s-dpo.previous" / "adapter").read_text() == {"one": "two", "two": "one"}[wanted]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-dpo", "s-dpo.previous"]


def test_what_is_half_deleted_is_neither_whole_nor_foreign(tmp_path, monkeypatch):
    folder = tmp_path / "s-dpo"
    for key in ("one", "two"):
        _made(folder, key)

    def killed(place, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        _made(folder, "three")  # swallows the kill
    assert not (tmp_path / "s-dpo.previous" / "adapter").exists()
    assert not is_finished(folder, "one")
    _made(folder, "three")
    assert (tmp_path / "s-dpo.previous" / "adapter").read_text() == "two"


def test_no_stage_has_the_name_of_what_another_keeps(tmp_path):
    with pytest.raises(ConfigError, match=r"'s-dpo.previous' cannot name a stage"):
        _made(tmp_path / "s-dpo.previous", "k")
    assert not list(tmp_path.iterdir())


def test_checkpoints_stay_until_the_stage_is_finished(tmp_path, monkeypatch):
    folder = tmp_path / "sft"

    def left():
        return [p.name for p in folder.glob("checkpoint-*")]

    with suppress(KeyboardInterrupt), stage(folder, "k", "sft", {}):
        write_json(folder / "checkpoint-5" / "trainer_state.json", {})
        raise KeyboardInterrupt
    assert left() == ["checkpoint-5"]

    def killed(place, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt), stage(folder, "k", "sft", {}):
        assert left() == ["checkpoint-5"]
        patch.setattr(shutil, "rmtree", killed)
    assert read_json(folder / STAGE_FILE)["finished"]
    assert left() == ["checkpoint-5"]
    assert is_finished(folder, "k")
    assert left() == []


@pytest.mark.parametrize("content", ['{"key": "k", "fini', "", "[1, 2]", "\xff"])
def test_a_folder_whose_state_cannot_be_read_is_moved_aside(tmp_path, content):
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / STAGE_FILE).write_text(content, encoding="latin-1")
    assert not is_finished(folder, "k")
    with stage(folder, "k", "sft", {}):
        pass
    assert is_finished(folder, "k")
    assert (tmp_path / "sft.previous" / STAGE_FILE).read_text(encoding="latin-1") == content


@pytest.mark.parametrize("content", ['{"key": "k", "fini', "", None])
def test_half_written_json_is_no_value(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") is None


def test_json_survives_writing_and_leaves_nothing_else(tmp_path):
    value = {"title": "Amélie – “…”", "n": [1, 2.5, None]}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value
    write_text(tmp_path / "deep" / "x.json", "{}")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_last_checkpoint_is_the_newest_complete_one(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (5, 10, 100, 20):
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"global_step": step})
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-300").mkdir()
    (tmp_path / "checkpoint-300" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_what_is_not_a_stage_is_neither_moved_nor_deleted(tmp_path):
    logs, aside = tmp_path / "data", tmp_path / "sft.previous"
    for place in (logs, aside):
        place.mkdir()
        (place / "log.csv").write_text("user_id,item_id\n")

    def make(folder):
        with stage(folder, "k", "sft", {}):
            pytest.fail("carried out")

    with pytest.raises(
        ConfigError, match=r"data cannot be made: .*data exists and is not from prefrec \(no stage.json in it\)"
    ):
        make(logs)
    (tmp_path / "sft").mkdir()
    with pytest.raises(ConfigError, match=r"sft cannot be made: .*sft.previous exists"):
        make(tmp_path / "sft")
    assert (logs / "log.csv").exists()
    assert (aside / "log.csv").exists()


def test_empty_folders_and_unreadable_stages_are_made_again(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / STAGE_FILE).write_text("{")
    for name in ("empty", "half"):
        with stage(tmp_path / name, "k", "sft", {}):
            pass
        assert is_finished(tmp_path / name, "k")


def test_files_are_known_by_their_whole_path(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("1")
    monkeypatch.chdir(tmp_path)
    assert file_facts([Path("a")]) == file_facts([tmp_path / "a"])
