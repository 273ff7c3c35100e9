"""Names of the files and columns of a study's runs."""

from dataclasses import replace

import polars as pl
import pytest

from prefrec.pipeline.opened import Run, open_run
from prefrec.report.tables import Grid
from prefrec_lab.study_tools.study import Outcome, Study, Table
from prefrec_lab.study_tools.write import write_study
from served_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, bpe_tokenizer) -> Run:
    return open_run(write_run(tmp_path_factory.mktemp("run"), bpe_tokenizer))


def _seeded(run: Run, seed: int, folder: str = "run") -> Run:
    recipe = run.recipe.model_copy(update={"seed": seed})
    return replace(run, folder=run.folder.parent / folder, recipe=recipe)


def _write(folder, *runs: Run) -> dict[str, pl.DataFrame]:
    """Return name → CSV of a table with two seeds, and of one with three."""
    frames = [pl.DataFrame({f"seed_{n}": [float(n)] for n in range(count)}) for count in (2, 3)]
    tables = [Table(f"of-{len(f.columns)}", "t", "f", Grid([], []), f) for f in frames]
    study = Study("s", "q", "v", vary=None, analyse=None)
    write_study(study, runs, Outcome(tables, [], [], n=1, users=1), folder)
    return {name: pl.read_csv(folder / f"{name}.csv") for name in ("of-2", "of-3")}


def test_no_recipe_takes_the_place_of_another(run, tmp_path):
    _write(tmp_path, _seeded(run, 1, "a/seed-0"), _seeded(run, 1, "b/seed-0"), _seeded(run, 2, "b/seed-1"))
    names = [path.name for path in sorted(tmp_path.glob("*.recipe.yaml"))]
    assert names == ["seed-0-2.recipe.yaml", "seed-0.recipe.yaml", "seed-1.recipe.yaml"]


def test_columns_of_seeds_have_the_numbers_of_the_seeds(run, tmp_path):
    tables = _write(tmp_path, _seeded(run, 2), _seeded(run, 0))
    assert tables["of-2"].to_dicts() == [{"seed_2": 0.0, "seed_0": 1.0}]
    assert tables["of-3"].columns == ["seed_0", "seed_1", "seed_2"]
    assert (tmp_path / "seed-2.recipe.yaml").is_file()
    tables = _write(tmp_path, _seeded(run, 3, "a"), _seeded(run, 3, "b"))
    assert tables["of-2"].columns == ["seed_0", "seed_1"]
