"""The walk through the code names what is there, and counts the frames that there are."""

import re
import traceback
from importlib import import_module
from pathlib import Path

import pytest

from prefrec import cli
from prefrec.stages import train
from tiny_run import write_recipe

PAGE = Path(__file__).parents[1] / "docs/walkthrough.md"
NAMES = sorted(set(re.findall(r"`(prefrec\.[\w.]+)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_walkthrough_is_there(name):
    """Import the longest module of a dotted name, and read the rest as attributes."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[size:]:
        found = getattr(found, part)


def test_six_frames_lie_between_the_command_line_and_the_training(recipe, tmp_path, monkeypatch):
    frames = []

    class ReachedError(Exception):
        pass

    def record(*args):
        frames.extend(f.name for f in traceback.extract_stack() if "/prefrec/" in f.filename.replace("\\", "/"))
        raise ReachedError

    monkeypatch.setattr(train, "train_sft", record)
    path = write_recipe(tmp_path, recipe.model_dump(mode="json"))
    monkeypatch.setattr("sys.argv", ["prefrec", "run", str(path), "--out", str(tmp_path / "run")])
    with pytest.raises(ReachedError):
        cli.main()
    assert frames == ["main", "run", "carry_out", "run_recipe", "run", "make"]
