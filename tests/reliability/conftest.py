"""What is killed, filled and asked here: a recipe, and a run of it that nothing disturbed."""

from pathlib import Path

import pytest

from reliability import whole_runs


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    return whole_runs.make_recipe(tmp_path_factory.mktemp("reliability"))


@pytest.fixture(scope="session")
def whole(recipe) -> tuple[Path, float]:
    """An undisturbed run, to be read only, and the seconds that it took."""
    run = recipe.parent / "undisturbed"
    return run, whole_runs.undisturbed(recipe, run)
