"""Write *Calibration*: SASRec in this harness beside published figures of SASRec, on Amazon Beauty in full ranking.

`python -m prefrec_lab.trials.calibration FOLDER LEARNS` asks the models of a run about all test rows, as the
evaluation of a run does, and keeps the ranks. Its recipe is `recipes/amazon-beauty-sasrec.yaml`; LEARNS is `train`,
or `val` if it has `refit: true`. Without arguments the table is written from the kept ranks. The page of published
benchmarks shows it, too (`prefrec_lab.trials.published`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefrec.evaluation import FULL_RANKING, Interval
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.score import predict_full
from prefrec_lab.ranks import coded, evaluate_ranks, row_facts, write_ranks
from prefrec_lab.results import RANKS, RESULTS, Table, save

SECTION = RESULTS / "72-calibration.json"
NAME = "amazon-beauty-sasrec"
LEARNS = {"train": "train", "val": "+val"}
MODELS = {"SASRec-full": "SASRec, full softmax", "SASRec-sampled": "SASRec, 256 negatives"}
PUBLISHED = {"SASRec-full": (0.0897, 0.0539), "SASRec-sampled": (0.0921, 0.0531)}
"""Ranker → HR@10 and NDCG@10 of papers, with their sources in `published.yaml`."""
CLOSE = 0.05
"""A replication is successful within this share of the published value (Petrov and Macdonald, RecSys 2022)."""
COLUMNS = ["model", "trained on", "HR@10", "published HR@10", "NDCG@10", "published NDCG@10"]


def measure(folder: Path, path: Path) -> None:
    """Write the ranks of those `MODELS` that the recipe of a run has, for all its test rows."""
    run = open_run(folder)
    section = run.recipe.evaluate
    made = [run.stage(name) for name in MODELS if name in run.plan.names]
    cache = folder / "predictions/full_catalogue"
    found = predict_full(run.data, section, [], made, cache, seed=run.recipe.seed)
    facts = row_facts(run.data, run.data.examples(section.split, section.rows), section.split)
    write_ranks(coded(found), facts, path)


def table(ranks: Path) -> Table:
    """Return the figures of kept ranks beside the published ones of the same model."""
    rows = []
    for learns, words in LEARNS.items():
        if (path := ranks / f"{NAME}-{learns}.parquet").is_file():
            found = evaluate_ranks(path, audit=FULL_RANKING, ks=[10]).metrics
            rows += [[MODELS[name], words, *_cells(name, found[name])] for name in MODELS if name in found]
    return {"title": "Calibration: SASRec in this harness, and as published", "columns": COLUMNS, "rows": rows}


def _cells(name: str, found: Mapping[str, Interval]) -> Iterator[str]:
    """Yield HR@10 and NDCG@10 of a model, each with the published value and how far it is away."""
    for metric, published in zip(("hr@10", "ndcg@10"), PUBLISHED[name], strict=True):
        one = found[metric]
        yield f"{one.mean:.4f} [{one.low:.4f}, {one.high:.4f}]"
        away = f"{one.mean / published - 1:+.1%}".replace("-", "−")
        yield f"{published:.4f} ({away}{', within 5%' if is_close(one.mean, published) else ''})"


def is_close(value: float, published: float) -> bool:
    """Return True if a value replicates a published one."""
    return abs(value / published - 1) <= CLOSE


def main() -> None:
    """Keep the ranks of a run; without one, write the table into the section, whose other fields are by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("learns", choices=list(LEARNS), nargs="?", default="train")
    args = parser.parse_args()
    if args.folder:
        measure(args.folder, RANKS / f"{NAME}-{args.learns}.parquet")
        return
    fields = json.loads(SECTION.read_text(encoding="utf-8"))
    save(fields | {"tables": [table(RANKS)]}, SECTION)


if __name__ == "__main__":
    main()
