"""Write *Published benchmarks*: figures of papers beside those of runs of `recipes/`, in full ranking.

`python -m prefrec_lab.trials.published RUNS` reads finished runs in folders NAME-LEARNS-SEED of RUNS, with the name
of a recipe, `val` or `train`, and the seed, and what `/usr/bin/time -v` printed to NAME-LEARNS-SEED.log beside them.
Before test examples, rankers of a `train` run know the training part alone (`data.learn_validation: false`). The runs
of the trial of texts (`prefrec_lab.trials.text`) and a run `paper-movielens-0` of recipes/paper-movielens-counts.yaml
(`prefrec_lab.trials.uniform_lists`) stand in the same folder.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from prefrec_lab.protocol import read_trial
from prefrec_lab.results import PROTOCOLS, RESULTS, Table, save
from prefrec_lab.trials import calibration, text
from prefrec_lab.trials.uniform_lists import list_table

SECTION = RESULTS / "71-published-benchmarks.json"
FIGURES = PROTOCOLS / "published.yaml"
LISTS = "paper-movielens-0"
RANKERS = ("popularity", "title TF-IDF", "window co-occurrence", "transition graph", "EASE", "title-tower", "blend")
LEARNS = {"train": "train", "val": "+val"}
COLUMNS = ["model", "trained on", "HR@10", "NDCG@10", "NDCG@10, over users alone", "source"]
CHECKED = "✓"
"""Mark of a published figure that we have read at its source."""


def runs_of(folder: Path, name: str, learns: str) -> list[dict[str, Any]]:
    """Return the full ranking of all seeds of a recipe, the lowest seed first."""
    found = sorted(folder.glob(f"{name}-{learns}-[0-9]*/metrics.json"))
    return [json.loads(file.read_text(encoding="utf-8"))["full_catalogue"] for file in found]


def own_rows(runs: list[dict[str, Any]], learns: str) -> Iterator[list[str]]:
    """Yield a row per ranker: means over seeds, with the intervals of the first seed."""
    for ranker in RANKERS:
        if ranker not in runs[0]["metrics"]:
            continue
        cells = [f"{'**prefrec, ' + ranker + '**' if ranker == 'blend' else 'prefrec, ' + ranker}", LEARNS[learns]]
        for metric in ("hr@10", "ndcg@10"):
            values = [run["metrics"][ranker][metric]["mean"] for run in runs]
            first = runs[0]["metrics"][ranker][metric]
            mean = statistics.mean(values)
            spread = mean - values[0]
            cells.append(f"{mean:.4f} [{first['low'] + spread:.4f}, {first['high'] + spread:.4f}]")
        cells.append(f"[{first['user_low'] + spread:.4f}, {first['user_high'] + spread:.4f}]")
        yield [*cells, f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"]


def source_of(figure: Mapping[str, Any]) -> str:
    """Return the source of a published figure, with a mark if we have read the figure there."""
    return f"{figure['source']} {CHECKED}" if figure.get("checked") else str(figure["source"])


def table(name: str, about: Mapping[str, Any], folder: Path) -> Table:
    """Return the table of a benchmark: published figures and ours, by what they are trained on."""
    rows = []
    for learns, words in LEARNS.items():
        of_papers = [f for f in about["figures"] if f["learns"] == words]
        rows += [
            [f["model"], words, f"{f['hr']:.4f}", f"{f['ndcg']:.4f}", "–", source_of(f)]
            for f in sorted(of_papers, key=lambda f: f["ndcg"])
        ]
        if runs := runs_of(folder, name, learns):
            rows += own_rows(runs, learns)
    return {"title": about["title"], "columns": COLUMNS, "rows": rows}


def differences(names: Mapping[str, Any], folder: Path) -> Table:
    """Return blend − best baseline, and − the blend without each part, of the first seed, paired by test rows."""
    rows = []
    for name in names:
        for learns, words in LEARNS.items():
            for run in runs_of(folder, name, learns)[:1]:
                for c in run["comparisons"]:
                    if c["ranker"] == "blend" and c["metric"] == "ndcg@10":
                        ends = f"{c['mean']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]".replace("-", "−")
                        rows.append([name, words, f"blend − {c['against']}", ends, f"{c['n']:,}"])
    return {"title": "Differences", "columns": ["recipe", "trained on", "difference", "NDCG@10", "n"], "rows": rows}


def costs(names: Mapping[str, Any], folder: Path) -> Table:
    """Return minutes and peak memory of the first seed's runs, with all that they evaluate."""
    rows = []
    for name in names:
        for learns, words in LEARNS.items():
            for log in sorted(folder.glob(f"{name}-{learns}-[0-9]*.log"))[:1]:
                told = log.read_text(encoding="utf-8")
                user, system = (re.search(rf"{kind} time \(seconds\): ([\d.]+)", told) for kind in ("User", "System"))
                peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", told)
                if user and system and peak:
                    minutes = (float(user[1]) + float(system[1])) / 60
                    rows.append([name, words, f"{minutes:.1f}", f"{int(peak[1]) / 2**20:.1f}"])
    return {"title": "Cost", "columns": ["recipe", "trained on", "CPU minutes", "peak memory, GiB"], "rows": rows}


def main() -> None:
    """Write the tables into the section, whose other fields are written by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    folder = parser.parse_args().runs
    published = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    fields = json.loads(SECTION.read_text(encoding="utf-8"))
    tables = [table(name, about, folder) for name, about in published.items()]
    tables += json.loads(calibration.SECTION.read_text(encoding="utf-8"))["tables"]
    tables += [differences(published, folder), costs(published, folder)]
    tables += [*text.tables(read_trial(text.PLAN), folder), list_table(folder / LISTS)]
    save(fields | {"tables": tables}, SECTION)


if __name__ == "__main__":
    main()
