"""Make all arms of a trial on one data set: `python scripts/trial.py RECIPE OUT [--seed N] [--control] [--set …]`.

The file lab/protocol/e5.yaml declares the arms. The recipe gives the data, the model and its SFT. The folder OUT is a
run like any other: a stopped one goes on, and `scripts/full_ranking.py` keeps its ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prefrec.pipeline.run import run_recipe
from prefrec.recipe import load_recipe
from prefrec_lab.protocol import read_trial

TRIAL = Path(__file__).parents[1] / "lab/protocol/e5.yaml"


def main() -> None:
    """Write the recipe of the trial into the folder, and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe of the data set")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--control", action="store_true", help="the positive control")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], help="field=value, as for `prefrec run`"
    )
    arguments = parser.parse_args()
    base: dict[str, Any] = yaml.safe_load(arguments.recipe.read_text(encoding="utf-8"))
    raw = read_trial(TRIAL).run_recipe(base, arguments.seed, is_control=arguments.control)
    run_changed(arguments.recipe, raw, arguments.out, arguments.changes)


def run_changed(
    recipe: Path, raw: Mapping[str, Any], out: Path, changes: Sequence[str], until: str = "report"
) -> None:
    """Run `raw` in place of a recipe, whose paths are relative to its folder; `changes` are those of `--set`."""
    path = recipe.with_name(f".trial-{out.name}.yaml")
    path.write_text(yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        run_recipe(load_recipe(path, changes), out, until=until)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
