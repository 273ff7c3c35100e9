"""`prefrec audit` on a folder: table, JSON, exit codes."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from prefrec.cli.audit import audit
from prefrec.data import Catalogue, PreparedData, RankingExample, write_prepared


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(audit)
    return app


def _data() -> PreparedData:
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(30)]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": [f"Title {i}" for i in ids]}))

    def rows(n: int, name: str) -> list[RankingExample]:
        drawn = [rng.permutation(ids).tolist() for _ in range(n)]
        return [RankingExample(f"{name}{u}", tuple(d[:3]), tuple(d[3:9]), d[8]) for u, d in enumerate(drawn)]

    log = [(f"u{u}", str(i), t) for u in range(20) for t, i in enumerate(rng.permutation(30)[:5])]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    frame = pl.DataFrame(log, schema=schema, orient="row")
    return PreparedData(
        catalogue, rows(50, "u"), rows(20, "v"), rows(40, "w"), frame, {"format_version": 1, "domain": "generic"}
    )


@pytest.mark.parametrize("run", [True, False])
def test_leaks_are_shown_and_strict_fails(app, tmp_path, run):
    write_prepared(_data(), tmp_path / "data" if run else tmp_path)
    shown = CliRunner().invoke(app, [str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "target position" in shown.output
    assert [
        line for line in shown.output.splitlines() if "target position" in line and line.rstrip().endswith("leak")
    ]
    assert "Audit: 2 leaks in 40 candidate sets" in shown.output
    assert CliRunner().invoke(app, [str(tmp_path), "--strict"]).exit_code == 1


def test_strict_fails_where_there_is_nothing_to_learn_from(app, tmp_path):
    data, rng = _data(), np.random.default_rng(1)
    clean = [replace(e, candidates=tuple(rng.permutation(e.candidates).tolist())) for e in data.test]
    write_prepared(replace(data, train=[], test=clean), tmp_path)
    result = CliRunner().invoke(app, [str(tmp_path), "--strict"], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "Audit: incomplete for 40 candidate sets. Skipped: target position" in result.output


def test_clean_lists_pass_strict(app, tmp_path):
    data, rng = _data(), np.random.default_rng(1)
    clean = {
        part: [replace(e, candidates=tuple(rng.permutation(e.candidates).tolist())) for e in data.split(part)]
        for part in ("train", "test")
    }
    write_prepared(replace(data, **clean), tmp_path)
    result = CliRunner().invoke(app, [str(tmp_path), "--strict"])
    assert result.exit_code == 0, result.output
