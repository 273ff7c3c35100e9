"""What the text of items is worth on published benchmarks (`lab/protocol/text.yaml`).

`python -m prefrec_lab.trials.text amazon-scientific > recipes/text-scientific.yaml` writes the recipe of a data set;
`prefrec run` carries it out once per seed, with `--set seed=N`, into a folder text-NAME-N of the folder that
`prefrec_lab.trials.published` reads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from prefrec.evaluation import metrics_for
from prefrec.evaluation.predictions import ranks_of
from prefrec.recipe import load_recipe
from prefrec_lab.protocol import Gains, Ranked, Trial, decide, read_trial
from prefrec_lab.results import PROTOCOLS, ROOT, Table

PLAN = PROTOCOLS / "text.yaml"
RECIPES = ROOT / "recipes"


def trial_recipe(name: str, trial: Trial) -> dict[str, Any]:
    """Return the recipe of a data set with the rankers of the trial; nothing learns its validation items."""
    recipe = load_recipe(RECIPES / f"{name}.yaml").model_dump(mode="json")
    kept = {section: recipe[section] for section in ("data", "model", "seed")}
    kept["data"] |= {"learn_validation": False}
    return {"name": f"text-{name}", **kept, **trial.recipe}


def ranked(name: str, trial: Trial, folder: Path) -> Ranked | None:
    """Return NDCG@10 of all arms with each seed whose run is finished; None if there is none."""
    ndcg = metrics_for([10])[trial.metric]
    seeds: dict[str, list[Gains]] = {arm: [] for arm in trial.arms}
    rows = pl.DataFrame()
    for seed in trial.training_seeds:
        run = folder / f"text-{name}-{seed}"
        if not (run / "metrics.json").exists():
            continue
        for arm, values in seeds.items():
            rows = pl.read_parquet(run / "predictions" / "full_catalogue" / f"{arm}.parquet").sort("row")
            values.append(ndcg(*ranks_of(rows)))
    if rows.is_empty():
        return None
    gains = {arm: np.stack(values) for arm, values in seeds.items()}
    return Ranked(name, gains, rows["user_id"].to_list(), rows["target"].to_list(), {})


def tables(trial: Trial, folder: Path) -> list[Table]:
    """Return the means of the arms, and the findings of the families, by data set."""
    measured = [one for name in trial.sets if (one := ranked(name, trial, folder))]
    means = [[arm, *(f"{one.gains[arm].mean():.4f}" for one in measured)] for arm in trial.arms]
    rows = []
    for family in trial.families:
        for d in decide(trial, family, measured):
            gap = d.found.difference
            ends = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]".replace("-", "−")
            rows.append([d.family, d.data, ends, f"{d.found.p:.4f}", d.found.word, str(d.seeds)])
    columns = ["difference", "recipe", "NDCG@10", "p", "finding", "seeds"]
    return [
        {"title": "What the text is worth", "columns": columns, "rows": rows},
        {"title": "NDCG@10 of its arms", "columns": ["arm", *(one.data for one in measured)], "rows": means},
    ]


def main() -> None:
    """Write the recipe of a data set to the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trial = read_trial(PLAN)
    parser.add_argument("name", choices=trial.sets)
    recipe = trial_recipe(parser.parse_args().name, trial)
    sys.stdout.write(yaml.safe_dump(recipe, sort_keys=False))


if __name__ == "__main__":
    main()
