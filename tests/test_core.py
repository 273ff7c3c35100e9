"""The core without torch: in processes that cannot import it or its libraries, as where no extra is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

BLOCKED = ("torch", "transformers", "peft", "accelerate", "huggingface_hub", "tokenizers", "gguf", "sentencepiece")
WITHOUT = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def prefrec(*arguments: object, folder: Path) -> subprocess.CompletedProcess:
    return python("from prefrec.cli import main; main()", *arguments, folder=folder)


def succeed(*arguments: object, folder: Path) -> str:
    done = prefrec(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A finished run of the preset `baselines` in `runs/shop`, made by the command without torch."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    starts = rng.integers(30, size=40).tolist()
    walks = [(u, n, (start + n * (1 + u % 2)) % 30) for u, start in enumerate(starts) for n in range(9)]
    log = [(f"u{u:02}", f"i{item}", 1_000 * n + u) for u, n, item in walks]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    titles = [
        f"{a} {b}"
        for a in ("Red", "Old", "Lost")
        for b in ["Alien", "Heat", "Emma", "Story", "Days", "Men", "Babe", "Eye", "Opus", "Fox"]
    ]
    pl.DataFrame({"item_id": [f"i{i}" for i in range(30)], "title": titles}).write_csv(folder / "items.csv")
    files = ("--interactions", "log.csv", "--items", "items.csv")
    succeed("init", *files, "--preset", "baselines", "--out", "shop.yaml", folder=folder)
    succeed("run", "shop.yaml", "--set", "rankers.title-tower.epochs=2", folder=folder)
    return folder


def test_the_preset_baselines_runs_whole(shop):
    run = shop / "runs" / "shop"
    values = json.loads((run / "metrics.json").read_text())
    assert {"title-tower", "blend"} <= {*json.dumps(values).replace('"', " ").split()}
    assert (run / "report.html").is_file()
    assert "torch" not in json.loads((run / "environment.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "shop.yaml", "--set", "rankers.title-tower.epochs=2"), "title-tower"),
        (("recommend", "runs/shop", "--users", "u01"), "Red|Old|Lost"),
        (("similar", "runs/shop", "Red Alien", "--ranker", "title-tower"), "Red|Old|Lost"),
        (("explain", "runs/shop", "--row", "0"), "Red|Old|Lost"),
        (("report", "runs/shop"), "report.html"),
        (("audit", "runs/shop"), "random"),
        (("evaluate-adapters", "runs/shop", "--no-zero-shot"), "title TF-IDF"),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_verbs_answer(shop, arguments, told):
    out = succeed(*arguments, folder=shop)
    assert any(word in out for word in told.split("|")), out


@pytest.mark.parametrize("verb", ["", "export", "evaluate", "evaluate-adapters", "init", "run"])
def test_help_needs_no_torch(tmp_path, verb):
    assert "Usage: prefrec" in succeed(*verb.split(), "--help", folder=tmp_path)


def test_fit_makes_the_preset_and_answers(shop):
    code = """
import prefrec

fitted = prefrec.fit("log.csv", "items.csv", "baselines", set={"rankers.title-tower.epochs": 2}, out="fitted")
print(fitted.recommend(user="u01", k=1)[0].title)
"""
    done = python(code, folder=shop)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "feature"),
    [
        (("run", "shop.yaml", "--set", "evaluate.zero_shot=true"), "a language model (zero-shot)"),
        (("run", "shop.yaml", "--set", "rankers.title-tower.vectors=all-minilm-l6-v2"), "all-minilm-l6-v2"),
        (("export", "runs/shop", "--out", "exported"), "This"),
    ],
    ids=["language model", "encoder", "export"],
)
def test_what_needs_torch_says_so_with_the_command(shop, arguments, feature):
    done = prefrec(*arguments, folder=shop)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert feature in last
    assert last.endswith("which is not installed: pip install '.[lm]' in a clone")


def test_a_name_that_needs_torch_says_so():
    done = python("from prefrec import SFTTrainer")
    told = "MissingExtraError: This needs torch, which is not installed: pip install '.[lm]' in a clone"
    assert told in done.stderr
