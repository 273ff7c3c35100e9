"""Another package adds a verb, a loss, a kind of rankers and a data source by entry points."""

import json
import os
import subprocess
import sys

PACKAGE = '''"""`prefrec hello`: what another package adds."""

import numpy as np
import polars as pl
import torch

from prefrec.data import Catalogue
from prefrec.intake.sources import Source, SourceKind
from prefrec.losses import PreferenceLoss, find_loss
from prefrec.stages.base import RankerStage
from prefrec.rankers.config import RankerConfig


def hello(name: str) -> None:
    """Greet from another package."""
    logps = torch.tensor([[-1.0, -2.0]])
    print(f"hello {name}", find_loss("gap")(logps, logps, 2.0).losses.tolist())


def gap_loss(policy_logps, ref_logps, beta):
    return PreferenceLoss(beta * (policy_logps[:, 0] - policy_logps[:, 1]), policy_logps)


def days(config):
    log = [(f"u{u}", f"i{(u + n) % 9}", n) for u in range(12) for n in range(7)]
    interactions = pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(9)], "title": [f"Day {n}" for n in range(9)]})
    return Source("days", "generic", Catalogue(items), interactions)


DAYS = SourceKind(days)


class FirstConfig(RankerConfig):
    kind: str = "first"
    name: str = "first"


class FirstRanker:
    name = "first"

    def score(self, examples):
        return np.array([[-float(n) for n, _ in enumerate(e.candidates)] for e in examples])


class FirstStage(RankerStage):
    Config = FirstConfig

    @property
    def key(self):
        return self.inputs.data_key

    def load(self, batch_size):
        return FirstRanker()
'''
ENTRY_POINTS = """[prefrec.commands]
hello = other_package:hello
[prefrec.losses]
gap = other_package:gap_loss
[prefrec.sources]
days = other_package:DAYS
[prefrec.rankers]
first = other_package:FirstStage
"""
COMMANDS = """
import json, sys
from prefrec.cli import main

for number, arguments in enumerate(json.loads(sys.argv[1])):
    print(end="\\0" if number else "")
    sys.argv = ["prefrec", *arguments]
    try:
        main()
    except SystemExit as e:
        assert not e.code, e.code
"""
"""Several commands in one process, each but the first after a NUL."""
RECIPE = """name: days
data: {source: days, candidates: {size: 3}}
rankers: [{kind: first}]
evaluate: {zero_shot: false, baselines: [popularity], full_rows: 0}
"""


def test_another_package_adds_to_every_group(tmp_path):
    (tmp_path / "other_package.py").write_text(PACKAGE)
    about = tmp_path / "other_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    asked = [("--help",), ("hello", "you"), ("run", "recipe.yaml", "--json")]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    place = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "100"}
    command = [sys.executable, "-c", COMMANDS, json.dumps(asked)]
    helped, hello, ran = subprocess.check_output(command, text=True, env=place, cwd=tmp_path).split("\0")
    assert "Greet from another package." in helped
    assert hello == "hello you [2.0]\n"
    assert list(json.loads(ran)["metrics"]["evaluation"]["metrics"]) == ["popularity", "first"]
