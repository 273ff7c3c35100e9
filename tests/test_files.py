"""Files are written to regular files only; devices, pipes, links and folders stay what they are."""

import os
import shutil
import socket
import stat
from pathlib import Path

import polars as pl
import pytest

from command import refused, succeed
from prefrec.errors import StorageError
from prefrec.files import check_destination, content_digest, write_json, write_together
from tiny_run import write_shop


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def link(path):
    (path.parent / "target").write_text("target")
    path.symlink_to(path.parent / "target")


def link_to_nothing(path):
    path.symlink_to(path.parent / "nothing")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (pipe, "name a file, and read it from there"),
        (unix_socket, "name a file, and read it from there"),
        (link, r"name the file itself: .*target"),
        (link_to_nothing, r"name the file itself: .*nothing"),
        (folder, r"name a file, such as .*NAME"),
    ],
)
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, make, way_out):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 100 characters
    path = tmp_path / "out"
    make(path.relative_to(tmp_path))
    before, names = path.lstat(), sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError, match=f"out cannot be written: it is a.*{way_out}"):
        write_json(path, {})
    with pytest.raises(StorageError, match=way_out):
        write_together({tmp_path / "beside": lambda p: p.write_text("x"), path: lambda p: p.write_text("x")})
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert sorted(os.listdir(tmp_path)) == names
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "target"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev")
def test_devices_are_refused():
    for device in ("/dev/null", "/dev/stdout"):
        with pytest.raises(StorageError, match="cannot be written"):
            check_destination(Path(device))


def test_a_link_to_a_folder_of_results_may_be_on_the_way(tmp_path):
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "large-disk")
    write_json(tmp_path / "results" / "a.json", {"a": 1})
    assert (tmp_path / "large-disk" / "a.json").is_file()


def test_verbs_leave_a_pipe_where_it_is(adapted_run, tmp_path):
    shop = write_shop(tmp_path / "shop")
    files = ("--interactions", shop["interactions"], "--items", shop["items"])
    data, run, out = tmp_path / "data", shutil.copytree(adapted_run, tmp_path / "run"), tmp_path / "out.csv"
    prepare = ("prepare", data, "--source", "files", *files, "--candidates.size", "6")
    succeed(*prepare)
    for path in (out, run / "report.html", data / "train.parquet"):
        path.unlink(missing_ok=True)
        pipe(path)
    told = "it is a device, a pipe or a socket"
    assert told in refused("recommend", run, "--all-users", "--ranker", "popularity", "--out", out)
    assert told in refused("init", *files, "--out", out)
    assert told in refused("report", run)
    assert told in refused(*prepare)
    assert all(stat.S_ISFIFO(p.stat().st_mode) for p in (out, run / "report.html", data / "train.parquet"))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    out.unlink()
    succeed("recommend", run, "--all-users", "--ranker", "popularity", "--out", out)
    assert len(pl.read_csv(out))


def test_a_path_that_is_no_utf8_is_named(adapted_run, tmp_path, monkeypatch):
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    run, shop = shutil.copytree(adapted_run, bad / "run"), write_shop(tmp_path / "shop")
    log = bad / "log.csv"
    shutil.copy(shop["interactions"], log)
    told = r"caf\udce9{}: the path has bytes that are not UTF-8; rename it, or set a UTF-8 locale"
    prepare = ("prepare", "--source", "files", "--items", shop["items"], "--candidates.size", "6", "--interactions")
    for end, arguments in {
        "/run": ("recommend", run, "--history", "i3", "--ranker", "popularity"),
        "/new": ("run", run / "recipe.yaml", "--out", bad / "new"),
        "/log.csv": (*prepare, log, tmp_path / "data"),
        "/.data.lock.json": (*prepare, shop["interactions"], bad / "data"),
    }.items():
        assert told.format(end) in refused(*arguments)
    monkeypatch.chdir(run)
    assert told.format("") not in (said := refused("report", "."))
    assert "the path has bytes that are not UTF-8" in said


@pytest.mark.parametrize("name", ["log-1.csv", "log-*.csv", "d*/log-1.csv", "**/*.csv", "days"])
def test_the_digest_of_files_does_not_depend_on_where_the_folder_is(tmp_path, name):
    for folder in ("here", "there"):
        for day in ("", "days/"):
            path = tmp_path / folder / f"{day}log-1.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("u,i")
    ours, theirs = tmp_path / "here", tmp_path / "there"
    assert content_digest(ours / name) == content_digest(theirs / name) is not None
    (theirs / "days/log-1.csv").write_text("u,j")
    (theirs / "log-1.csv").write_text("u,j")
    assert content_digest(ours / name) != content_digest(theirs / name)


def test_the_digest_of_a_pattern_depends_on_the_names_that_it_finds(tmp_path):
    (tmp_path / "a.csv").write_text("u,i")
    before = content_digest(tmp_path / "*")
    (tmp_path / "a.csv").rename(tmp_path / "a.tsv")
    assert content_digest(tmp_path / "*") != before
