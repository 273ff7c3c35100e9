"""`prefrec prepare` by itself: what it prints and writes."""

import json

import pytest

from command import succeed
from prefrec.data import read_prepared
from tiny_run import write_shop


@pytest.fixture
def prepare(tmp_path):
    shop = write_shop(tmp_path / "shop")
    files = ("--source", "files", "--interactions", shop["interactions"], "--items", shop["items"])
    return lambda *options: succeed("prepare", tmp_path / "out", *files, *options)


def test_table(prepare, tmp_path):
    out = prepare("--max-test-rows", 5)
    assert "5 test examples of 5 users" in out
    assert "40 users, 60 items, 360 interactions, 280 of them to learn from" in out
    assert "split leave-last-out, 20 candidates (uniform), seed 0" in out
    assert len(read_prepared(tmp_path / "out").test) == 5


def test_json(prepare, tmp_path):
    out, data = prepare("--json", "--candidates.size", 7), read_prepared(tmp_path / "out")
    assert json.loads(out) == data.protocol
    assert len(data.test[0].candidates) == 7
