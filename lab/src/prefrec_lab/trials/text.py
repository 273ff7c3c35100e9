"""What the text of items is worth on published benchmarks (`lab/protocol/text.yaml`).

`python -m prefrec_lab.trials.text recipe amazon-scientific > recipes/text-scientific.yaml` writes the recipe of a
data set; `prefrec run` carries it out once per seed, with `--set seed=N`, into a folder text-NAME-N. Then
`python -m prefrec_lab.trials.text table RUNS` writes the findings of the runs in these folders.
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
from prefrec.files import write_json
from prefrec.recipe import load_recipe
from prefrec_lab.protocol import Gains, Ranked, Trial, decide, read_trial
from prefrec_lab.results import PROTOCOLS, RESULTS, Table

PLAN = PROTOCOLS / "text.yaml"
TABLES = RESULTS / "published-text.json"
"""Tables of the findings, which `prefrec_lab.trials.published` adds to its page."""
RECIPES = Path(__file__).resolve().parents[4] / "recipes"


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
    """Write a recipe to the output, or the tables of finished runs to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["recipe", "table"])
    parser.add_argument("of", help="name of a data set, or the folder of runs")
    given = parser.parse_args()
    trial = read_trial(PLAN)
    if given.what == "recipe":
        sys.stdout.write(yaml.safe_dump(trial_recipe(given.of, trial), sort_keys=False))
    else:
        write_json(TABLES, {"tables": tables(trial, Path(given.of))})


if __name__ == "__main__":
    main()
