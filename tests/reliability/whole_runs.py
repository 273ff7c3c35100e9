"""A tiny recipe that trains in seconds, and whether two runs of it came out the same, bit for bit."""

import json
from pathlib import Path

import polars as pl
import torch

from command import prefrec
from prefrec.files import read_json
from prefrec.runs.stage import STAGE_FILE
from reliability.children import call
from tiny import bpe_tokenizer
from tiny_run import adapter_weights, tiny_recipe, write_model, write_recipe, write_shop

STAGES = ("data", "sft", "align/s-dpo")

PARTS = ("prepare", *STAGES[1:], "evaluate")
"""Of a run, in their order, as `unfinished` calls them."""

END = "the end"
"""What `unfinished` calls a run to which nothing is left to do."""


def make_recipe(folder: Path) -> Path:
    """Prepare, SFT, S-DPO and evaluation in float32, on a made-up log and a tiny random model."""
    shop, model = write_shop(folder / "shop"), write_model(folder / "model", bpe_tokenizer())
    recipe = tiny_recipe(shop, model)
    recipe["evaluate"] |= {"rows": 8, "full_rows": 4, "generate_rows": 2}
    return write_recipe(folder, recipe, align=recipe["align"][-1:])


def arguments(recipe: Path, run: Path) -> tuple[str, ...]:
    return ("run", str(recipe), "--out", str(run), "--until", "evaluate")


def undisturbed(recipe: Path, run: Path) -> float:
    """Carry the recipe out; seconds from the run's first file to its last."""
    outcome = call(prefrec, *arguments(recipe, run))
    assert outcome.code == 0, outcome.err
    return took(run)


def took(run: Path) -> float:
    """Seconds from a finished run's first file to its last."""
    return (run / "metrics.json").stat().st_mtime - (run / "recipe.yaml").stat().st_mtime


def unfinished(run: Path) -> str:
    """The part of `PARTS` that a run was in when it ended, or `END`."""
    for name, part in zip(STAGES, PARTS, strict=False):
        if not (read_json(run / name / STAGE_FILE) or {}).get("finished"):
            return part
    return END if (run / "metrics.json").is_file() else PARTS[-1]


def finished_files(run: Path) -> dict[str, bytes]:
    """The content of every file in the folders of finished stages."""
    folders = [run / name for name in STAGES if (read_json(run / name / STAGE_FILE) or {}).get("finished")]
    return {str(p.relative_to(run)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def differences(run: Path, other: Path) -> list[str]:
    """Parts of two finished runs that are not the same: data, weights, predictions, metrics."""
    found = [f"{name} is unfinished" for name in STAGES if not read_json(run / name / STAGE_FILE)["finished"]]
    tables = [f"data/{p.name}" for p in sorted((other / "data").glob("*.parquet"))]
    for name in [*tables, "predictions.parquet"]:
        if not pl.read_parquet(run / name).equals(pl.read_parquet(other / name)):
            found.append(name)
    for name in STAGES[1:]:
        mine, theirs = (adapter_weights(r / name / "adapter") for r in (run, other))
        if mine.keys() != theirs.keys():
            found.append(f"{name}: other tensors")
        elif not all(torch.equal(mine[k], theirs[k]) for k in mine):
            most = max(float((mine[k] - theirs[k]).abs().max()) for k in mine)
            found.append(f"{name}: weights by {most:.1g}")  # rounding, or another step
    for name in ("metrics.json", "data/protocol.json"):
        if json.loads((run / name).read_text()) != json.loads((other / name).read_text()):
            found.append(name)
    return found + [f"{p.relative_to(run)} is left over" for p in sorted(run.rglob("checkpoint-*"))]
