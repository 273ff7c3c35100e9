"""A stage's folder: finished, unfinished, made from something else, half written."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prefrec import files
from prefrec.errors import ConfigError
from prefrec.files import content_digest, file_digest, read_json, write_json, write_text
from prefrec.runs import stage as stage_module
from prefrec.runs.stage import STAGE_FILE, damaged, is_finished, last_checkpoint, machine, stage, stage_key
from sealed import flip


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "s-dpo"


def test_key_depends_on_values_not_on_their_order():
    assert stage_key(a=1, b={"x": 1, "y": 2}) == stage_key(b={"y": 2, "x": 1}, a=1)
    assert len({stage_key(a=1), stage_key(a=2), stage_key(b=1), stage_key(a=1.5), stage_key()}) == 5


def test_a_stage_that_ends_is_finished(folder):
    assert not is_finished(folder, "k")
    with stage(folder, "k", "sft", {"rows": 3}) as where:
        assert where == folder
        assert not is_finished(folder, "k")
        assert read_json(folder / STAGE_FILE)["finished"] is False
    assert is_finished(folder, "k")
    assert not is_finished(folder, "other")
    state = read_json(folder / STAGE_FILE)
    assert state.pop("peak_bytes") > 0
    assert state.pop("environment") == machine()
    told = {"key": "k", "kind": "sft", "config": {"rows": 3}, "finished": True, "files": {}}
    assert state == told | dict.fromkeys(("seconds", "cpu_seconds"), pytest.approx(0, abs=1))


def test_who_can_read_a_stage_can_read_its_weights(folder):
    with stage(folder, "k", "sft", {}):
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o600)
    assert (folder / "model.safetensors").stat().st_mode == (folder / STAGE_FILE).stat().st_mode


def test_an_interrupted_stage_goes_on_in_its_folder(folder, tmp_path):
    """The times of its parts add up, and its peak of memory is the highest."""
    with suppress(KeyboardInterrupt), stage(folder, "k", "sft", {}):
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    assert not is_finished(folder, "k")
    before = {"seconds": 5.0, "cpu_seconds": 7.0, "peak_bytes": 1 << 60}
    write_json(folder / STAGE_FILE, read_json(folder / STAGE_FILE) | before)
    with stage(folder, "k", "sft", {}):
        assert (folder / "checkpoint").read_text() == "half"
    assert is_finished(folder, "k")
    state = read_json(folder / STAGE_FILE)
    assert (state["seconds"] >= 5, state["cpu_seconds"] >= 7, state["peak_bytes"]) == (True, True, 1 << 60)
    assert _names(tmp_path) == ["s-dpo"]


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


def _made(folder, *keys, stopped=False):
    for key in keys:
        with suppress(KeyboardInterrupt), stage(folder, key, "align", {}):
            assert stopped or _names(folder) == [STAGE_FILE]
            (folder / "adapter").write_text(key)
            if stopped:
                raise KeyboardInterrupt


def test_other_keys_move_results_aside_and_keep_three(folder, tmp_path):
    _made(folder, "one", "two", "three", "four", "five")
    kept = {name: (tmp_path / name / "adapter").read_text() for name in _names(tmp_path)}
    aside = {f"s-dpo.previous-{n}": key for n, key in ((2, "two"), (3, "three"), (4, "four"))}
    assert kept == {"s-dpo": "five"} | aside
    assert is_finished(tmp_path / "s-dpo.previous-2", "two")


@pytest.mark.parametrize("stopped", [False, True])
def test_what_was_moved_aside_comes_back_when_it_is_wanted(folder, tmp_path, stopped):
    _made(folder, "one", stopped=stopped)
    _made(folder, "two", "three")
    for wanted in ("one", "three", "one", "two", "one"):
        assert is_finished(folder, wanted) == (wanted != "one" or not stopped)
        assert (folder / "adapter").read_text() == wanted
        assert {(p / "adapter").read_text() for p in tmp_path.iterdir()} == {"one", "two", "three"}
    with stage(folder, "one", "align", {}):
        assert (folder / "adapter").read_text() == "one"
    shutil.rmtree(folder)
    assert is_finished(folder, "two")
    assert len(_names(tmp_path)) == 2


@pytest.mark.parametrize("wanted", ["one", "two"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_kill_between_two_renames_loses_nothing(folder, tmp_path, monkeypatch, at, wanted):
    rename, done = Path.rename, []
    _made(folder, "one", "two")

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
    assert {(p / "adapter").read_text() for p in tmp_path.iterdir()} == {"one", "two"}


def test_what_is_half_deleted_does_not_count_as_whole(folder, tmp_path, monkeypatch):
    _made(folder, "one", "two", "three", "four")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", _killed)
        _made(folder, "five")  # swallows the kill
    assert (tmp_path / "s-dpo.previous-1" / "adapter").exists()
    assert not is_finished(folder, "one")
    _made(folder, "five")
    assert _names(tmp_path) == ["s-dpo", *(f"s-dpo.previous-{n}" for n in (2, 3, 4))]


def _killed(place, **_):
    raise KeyboardInterrupt


def test_folders_of_others_that_are_named_like_earlier_results_stay(folder, tmp_path):
    write_text(tmp_path / "s-dpo.previous-1" / "letter", "x")
    _made(folder, "one", "two", "three", "four", "five")
    assert (tmp_path / "s-dpo.previous-1" / "letter").exists()
    assert _names(tmp_path) == ["s-dpo", *(f"s-dpo.previous-{n}" for n in (1, 3, 4, 5))]


def test_no_path_out_of_the_folder_is_opened_or_removed(folder, tmp_path):
    write_text(tmp_path / "letter", "x")
    _made(folder, "k")
    state = read_json(folder / STAGE_FILE)
    write_json(folder / STAGE_FILE, state | {"files": {"../letter": "0", str(tmp_path / "letter"): "0"}})
    assert not is_finished(folder, "k")
    assert (tmp_path / "letter").exists()


def test_a_damaged_stage_is_told_and_made_again(folder, capsys):
    with stage(folder, "k", "align", {}):
        for name in ("adapter/weights", "adapter/config", "adapter/README.md", "log", "checkpoint-2/weights"):
            write_text(folder / name, name)
    assert read_json(folder / STAGE_FILE)["files"].keys() == {"adapter/weights", "adapter/config", "log"}
    write_text(folder / "adapter" / "README.md", "a card of my own")
    os.utime(folder / "log", ns=(0, 0))
    assert (is_finished(folder, "k"), damaged(folder)) == (True, [])
    flip(folder / "adapter" / "weights")
    (folder / "adapter" / "config").unlink()
    assert damaged(folder) == ["adapter/config", "adapter/weights"]
    assert not is_finished(folder, "k")
    told = "s-dpo: adapter/config, adapter/weights damaged or missing; the stage runs again"
    assert told in capsys.readouterr().err
    with stage(folder, "k", "align", {}):
        assert not (folder / "adapter" / "weights").exists()
        write_text(folder / "adapter" / "weights", "as before")
    assert is_finished(folder, "k")
    assert read_json(folder / STAGE_FILE)["seconds"] < 1


def test_what_a_stage_made_is_on_the_disk_before_it_counts_as_finished(folder, tmp_path, monkeypatch):
    synced = []

    def sync(paths):
        synced.append(({str(p.relative_to(tmp_path)) for p in paths}, read_json(folder / STAGE_FILE)["finished"]))

    monkeypatch.setattr(stage_module, "sync", sync)
    with stage(folder, "k", "sft", {}):
        write_text(folder / "adapter" / "weights", "x")
    made = {"s-dpo/adapter/weights", "s-dpo/adapter"}
    assert synced == [(made, False), ({"s-dpo/stage.json", "s-dpo"}, True)]


def test_the_digest_of_a_large_file_is_remembered_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LARGE", 1000)
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, kind: read.append(Path(f.name).name) or digest(f, kind))
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(2000))
    small.write_bytes(bytes(10))
    first = [hashlib.sha256(bytes(n)).hexdigest() for n in (2000, 10)]
    for _ in range(2):
        assert [file_digest(large), file_digest(small)] == first
    assert read == ["large", "small", "small"]
    times = large.stat()
    flip(large)
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(large) != first[0]
    (tmp_path / "cache" / "digests.json").write_text("[")
    assert file_digest(large) != first[0]


def test_content_is_known_by_itself_and_not_by_names_and_dates(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_text(folder / "config.json", "{}")
    write_text(two / ".hidden", "x")
    write_text(two / "README.md", "x")
    os.utime(two / "config.json", ns=(0, 0))
    assert content_digest(one) == content_digest(two)
    assert content_digest(one / "config.json") == content_digest(two / "config.json") is not None
    write_text(two / "config.json", "[]")
    assert content_digest(one) != content_digest(two)
    assert content_digest(tmp_path / "none") is None


def test_the_files_of_a_pattern_are_its_content(tmp_path):
    pattern = tmp_path / "*" / "log.csv"
    assert content_digest(pattern) is None
    digests = []
    for month in "ab":
        (tmp_path / month).mkdir()
        (tmp_path / month / "log.csv").write_text(month)
        digests.append(content_digest(pattern))
    assert None not in digests
    assert len({*digests, content_digest(pattern)}) == 2


def test_no_stage_has_the_name_of_what_another_keeps(tmp_path):
    with pytest.raises(ConfigError, match=r"'s-dpo.previous-1' cannot name a stage"):
        _made(tmp_path / "s-dpo.previous-1", "k")
    assert not list(tmp_path.iterdir())


def test_checkpoints_stay_until_the_stage_is_finished(folder, monkeypatch):
    def left():
        return [p.name for p in folder.glob("checkpoint-*")]

    with suppress(KeyboardInterrupt), stage(folder, "k", "sft", {}):
        write_json(folder / "checkpoint-5" / "trainer_state.json", {})
        raise KeyboardInterrupt
    assert left() == ["checkpoint-5"]
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt), stage(folder, "k", "sft", {}):
        assert left() == ["checkpoint-5"]
        patch.setattr(shutil, "rmtree", _killed)
    assert read_json(folder / STAGE_FILE)["finished"]
    assert left() == ["checkpoint-5"]
    assert is_finished(folder, "k")
    assert left() == []


def test_the_draft_of_a_stage_killed_after_its_last_change_is_removed(folder):
    _made(folder, "k")
    before = _names(folder)
    (folder / f".{STAGE_FILE}.tmp").mkdir()
    assert is_finished(folder, "k")
    assert _names(folder) == before


@pytest.mark.parametrize("content", ['{"key": "k", "fini', "\xff"])
def test_a_folder_whose_state_cannot_be_read_is_moved_aside(folder, tmp_path, content):
    folder.mkdir()
    (folder / STAGE_FILE).write_text(content, encoding="latin-1")
    assert not is_finished(folder, "k")
    _made(folder, "k")
    assert is_finished(folder, "k")
    assert (tmp_path / "s-dpo.previous-1" / STAGE_FILE).read_text(encoding="latin-1") == content


@pytest.mark.parametrize("draft", [False, True])
def test_a_stage_killed_before_its_first_file_begins_again(folder, tmp_path, draft):
    """Of another machine, as after a power cut; nothing is set aside."""
    folder.mkdir()
    if draft:
        (folder / f".{STAGE_FILE}.0badcafe-12.tmp").write_text("{")
    with stage(folder, "k", "sft", {}):
        pass
    assert is_finished(folder, "k")
    assert (_names(tmp_path), _names(folder)) == (["s-dpo"], [STAGE_FILE])


def test_damaged_and_unfinished_checkpoints_count_as_absent(tmp_path, capsys):
    assert last_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-200").mkdir()
    write_text(tmp_path / "checkpoint-300" / "trainer_state.json", '{"global_st')
    for step in (5, 10, 15, 20):
        folder = tmp_path / f"checkpoint-{step}"
        write_json(folder / "trainer_state.json", {"global_step": step})
        save_file({"w": torch.zeros(4)}, folder / "adapter_model.safetensors")
        torch.save({"w": torch.arange(100)}, folder / "optimizer.pt")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    flip(tmp_path / "checkpoint-20" / "optimizer.pt")
    weights = tmp_path / "checkpoint-15" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    told = capsys.readouterr().err
    assert "checkpoint-20: optimizer.pt damaged; training resumes from an earlier checkpoint" in told
    assert "checkpoint-15: adapter_model.safetensors damaged" in told


def test_what_is_not_a_stage_is_neither_moved_nor_deleted(tmp_path):
    logs = tmp_path / "data"
    write_text(logs / "log.csv", "user_id,item_id\n")
    told = r"data already exists and is not from prefrec \(it has no stage.json"
    with pytest.raises(ConfigError, match=told), stage(logs, "k", "sft", {}):
        pytest.fail("carried out")
    assert (logs / "log.csv").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_that_finds_anothers_key_at_its_end_says_so(folder, fails):
    def carry_out():
        with stage(folder, "mine", "sft", {}):
            _made(folder, "yours")
            if fails:
                raise FileNotFoundError("best")

    error, told = (FileNotFoundError, "best") if fails else (ConfigError, "another command has written to this stage")
    with pytest.raises(error, match=told):
        carry_out()
    assert is_finished(folder, "yours")
    assert (folder / "adapter").read_text() == "yours"
