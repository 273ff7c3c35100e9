"""Progress in a log file, and folders that cannot be made."""

from pathlib import Path

import pytest

from prefrec import console
from prefrec.errors import StorageError
from prefrec.files import make_folder


@pytest.mark.parametrize(("sizes", "lines"), [(None, ["x: 1/3", "x: 2/3"]), ([6.0, 3.0, 1.0], ["x: 60%", "x: 90%"])])
def test_progress_counts_items_or_their_sizes(monkeypatch, sizes, lines) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(console, "say", said.append)
    assert list(console.track("abc", "x", sizes=sizes)) == [*"abc"]
    assert [line.partition(",")[0] for line in said] == lines
    assert all(line.endswith(" s left") for line in said)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/run cannot be written: Not a directory; name another"):
        make_folder(tmp_path / "file" / "run")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
