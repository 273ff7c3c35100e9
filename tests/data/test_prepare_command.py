"""`prefrec prepare` by itself: what it prints and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prefrec.cli.prepare import prepare
from prefrec.data import read_prepared

app = typer.Typer()
app.command()(prepare)


@pytest.fixture
def arguments(shop: Callable[..., dict[str, Path]], tmp_path: Path) -> list[str]:
    paths = shop()
    files = ["--source", "files", "--interactions", str(paths["interactions"]), "--items", str(paths["items"])]
    return [str(tmp_path / "out"), *files]


def run(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def test_table(arguments: list[str]) -> None:
    out = run([*arguments, "--max-test-rows", "5"])
    assert "5 test examples of 5 users" in out
    assert "8 users, 40 items, 64 interactions, 48 of them to learn from" in out
    assert "split leave-last-out, 20 candidates (uniform), seed 0" in out
    assert len(read_prepared(Path(arguments[0])).test) == 5


def test_json(arguments: list[str]) -> None:
    out = run([*arguments, "--json", "--candidates.size", "7"])
    data = read_prepared(Path(arguments[0]))
    assert json.loads(out) == data.protocol
    assert len(data.test[0].candidates) == 7
