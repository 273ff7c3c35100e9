"""Folders of prepared data: there and back, unfinished ones refused."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from prefrec.data import Catalogue, PreparedData, RankingExample, store
from prefrec.data.store import prepared_digest, read_prepared, write_prepared
from prefrec.errors import DataError, StorageError
from prefrec.files import storage_error, write_together, write_whole, writing
from prefrec.intake import PrepareConfig, prepare


@pytest.fixture
def data(shop: Callable[..., dict[str, Path]]) -> PreparedData:
    return prepare(PrepareConfig(source="files", **shop()))  # type: ignore[arg-type]


def test_round_trip(data, tmp_path):
    folder = tmp_path / "a" / "b"
    write_prepared(data, folder)
    write_prepared(data, folder)
    back = read_prepared(folder)
    assert back.catalogue.frame.equals(data.catalogue.frame)
    assert back.train_interactions.equals(data.train_interactions)
    assert back.held_out_interactions.equals(data.held_out_interactions)
    assert (back.train, back.validation, back.test) == (data.train, data.validation, data.test)
    assert back.protocol == data.protocol
    tables = ("held_out", "interactions", "items", "test", "touched", "train", "validation")
    assert {p.name for p in folder.iterdir()} == {"protocol.json", *(f"{name}.parquet" for name in tables)}


def test_users_there_and_back(data, tmp_path):
    users = pl.DataFrame({"user_id": ["u1", "u2"], "plan": ["free", None]})
    write_prepared(data, tmp_path)
    digest = prepared_digest(tmp_path)
    write_prepared(replace(data, users=users), tmp_path)
    assert read_prepared(tmp_path).users.equals(users)
    assert prepared_digest(tmp_path) == digest  # no row is made of what users are
    pl.concat([users, users]).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"users\.parquet, row 0: another row has the same user_id"):
        read_prepared(tmp_path)
    write_prepared(data, tmp_path)
    assert read_prepared(tmp_path).users is None


def test_folders_of_an_earlier_prefrec_are_read(data, tmp_path):
    write_prepared(data, tmp_path)
    digest = prepared_digest(tmp_path)
    (tmp_path / "held_out.parquet").unlink()
    back = read_prepared(tmp_path)
    assert back.held_out_interactions is None
    assert back.test == data.test
    assert prepared_digest(tmp_path) == digest  # models stay when the folder is prepared again
    write_prepared(data, tmp_path)
    write_prepared(back, tmp_path)
    assert read_prepared(tmp_path).held_out_interactions is None
    back.train_interactions.drop("item_id").write_parquet(tmp_path / "held_out.parquet")
    told = r"held_out\.parquet: no column 'item_id' of type String; prepare the data again"
    with pytest.raises(DataError, match=told):
        read_prepared(tmp_path)


def test_what_cannot_be_written_leaves_the_old_folder(data, tmp_path, monkeypatch):
    write_prepared(data, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    write = store._write_rows

    def full(rows: Sequence[RankingExample], times: bool, path: Path) -> None:
        write(rows, times, path)
        if "test" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write_rows", full)
    told = r"test\.parquet cannot be written: No space left on device; free some space"
    with pytest.raises(StorageError, match=told):
        write_prepared(data, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_crash_while_tables_move_leaves_an_unfinished_folder(data, tmp_path, monkeypatch):
    write_prepared(replace(data, users=pl.DataFrame({"user_id": ["u1"], "plan": ["free"]})), tmp_path / "out")
    monkeypatch.setattr("os.replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_prepared(data, tmp_path / "out")
    assert not (tmp_path / "out" / "users.parquet").exists()  # old users are gone before new rows come
    with pytest.raises(DataError, match="is unfinished"):
        read_prepared(tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Quota"), "x cannot be written: Disk quota exceeded; free some space"),
        (PermissionError(errno.EACCES, "no"), "x cannot be written: Permission denied; name another folder"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "No space left on device"),
        (ValueError("I/O error: No space left on device (os error 28)"), "No space left on device; free some space"),
        (OSError("Read-only file system (os error 30): /x (set POLARS_VERBOSE=1)"), "Read-only file system; name"),
    ],
)
def test_every_library_s_failure_to_write_is_told_alike(error, message):
    with pytest.raises(StorageError) as told, writing(Path("x")):
        raise error
    assert message in str(told.value)


def test_other_errors_pass():
    assert storage_error(ValueError("no")) is None
    with pytest.raises(ZeroDivisionError), writing(Path("x")):
        1 / 0  # noqa: B018
    with pytest.raises(FileNotFoundError), writing(Path("x")):
        raise FileNotFoundError(errno.ENOENT, "gone")


WRITER = """
import sys, time
from pathlib import Path
from prefrec.files import write_whole

def write(draft):
    draft.write_text("half")
    print("half", flush=True)
    time.sleep(600)

write_whole(Path(sys.argv[1]), write)
"""


def test_a_writer_waits_for_a_living_one_and_not_for_a_killed_one(tmp_path):
    path = tmp_path / "items.parquet"
    (tmp_path / ".items.parquet.swp").touch()
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first, ThreadPoolExecutor() as pool:
        assert first.stdout
        assert first.stdout.readline() == b"half\n"
        write_whole(tmp_path / "parquet", lambda p: p.write_text("another file"))
        second = pool.submit(write_whole, path, lambda p: p.write_text("whole"))
        time.sleep(0.1)
        assert not second.done()
        assert (tmp_path / ".items.parquet.tmp" / "items.parquet").read_text() == "half"
        first.kill()
        second.result(60)
    left = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert left == {"items.parquet": "whole", "parquet": "another file", ".items.parquet.swp": ""}


def test_a_draft_that_another_writer_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    mkdir, calls = os.mkdir, []

    def crossed(path, *more, **options):
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(path)  # the other writer's folder, which is gone a moment later
        mkdir(path, *more, **options)

    monkeypatch.setattr(os, "mkdir", crossed)
    write_together({tmp_path / "a": lambda draft: draft.write_text("whole")})
    assert (tmp_path / "a").read_text() == "whole"


def test_many_writers_of_the_same_files_leave_files_of_one_of_them(tmp_path):
    paths = [tmp_path / name for name in "ab"]

    def write(number: int) -> None:
        def content(draft: Path) -> None:
            draft.write_text(f"{number} " * 10_000)

        write_together(dict.fromkeys(paths if number % 2 else reversed(paths), content))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(64)))
    first, second = (path.read_text() for path in paths)
    assert first == second
    assert len(set(first.split())) == 1
    assert sorted(tmp_path.iterdir()) == paths


def test_a_draft_that_another_process_removed_is_told_and_the_old_file_stays(tmp_path):
    path = tmp_path / "items.parquet"
    path.write_text("old")
    with pytest.raises(
        StorageError, match=r"items.parquet cannot be written: another process removed its draft.*again"
    ):
        write_whole(path, lambda draft: shutil.rmtree(draft.parent))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["items.parquet"]


def test_the_digest_changes_with_the_rows(tmp_path, data):
    def digest(changed):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        write_prepared(changed, folder)
        return prepared_digest(folder)

    first = digest(data)
    assert digest(data) == first == digest(replace(data, protocol=data.protocol | {"config": {"path": "moved"}}))
    assert digest(replace(data, protocol=data.protocol | {"domain": "songs"})) != first  # other prompts
    titles = data.catalogue.frame.with_columns(pl.col("title").str.to_uppercase())
    assert digest(replace(data, catalogue=Catalogue(titles))) != first
