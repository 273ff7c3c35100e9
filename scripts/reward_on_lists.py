"""Which score ranks lists that are drawn like targets best: log π, S-DPO's reward, or log π − λ·log popularity?

`python scripts/reward_on_lists.py RUN` asks the models of a finished run about lists of 20 that are drawn so, and
writes lab/results/58-reward-on-lists.json. At the optimum, S-DPO's reward is log p(y|x) / q(y) plus a constant,
where q is the distribution of its negatives. So with negatives drawn by popularity it should be the ideal score on
lists of the targets of other rows. Subtracting log popularity from SFT does the same without alignment: the control.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rank_tables import shown

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.evaluation import Evaluation, NoAudit, evaluate, metrics
from prefrec.pipeline.opened import open_run
from prefrec.training.negatives import resample_negatives

SECTION = Path(__file__).parent.parent / "lab/results/58-reward-on-lists.json"
SIZE = 20
LAMBDAS = np.linspace(0, 2, 21)
LISTS = {"in-batch": "targets of other rows"}
Scores = dict[str, NDArray[np.float64]]


class Scored:
    """Scores [B, C] that are known already, as a ranker."""

    def __init__(self, name: str, scores: NDArray[np.float64]) -> None:
        self.name, self.scores = name, scores

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return the scores."""
        return self.scores


def log_popularity(data: PreparedData, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
    """Return log(1 + training interactions) of the candidates [B, C]."""
    counts = dict(data.train_interactions["item_id"].value_counts().iter_rows())
    return np.log1p([[counts.get(c, 0) for c in e.candidates] for e in examples])


def scores(
    asked: Mapping[str, NDArray[np.float64]], popular: NDArray[np.float64], chosen: Mapping[str, Any]
) -> Scores:
    """Return the scores of the table: of SFT, of the chosen alignment of each kind, and of the control."""
    out = {"popularity": popular, "SFT: log π": asked["sft"]}
    out["SFT: log π − λ·log popularity"] = asked["sft"] - chosen["lambda"] * popular
    for kind in ("popularity", "in-batch"):
        aligned = asked[chosen[kind]]
        out[f"S-DPO, {kind}: log π"] = aligned
        out[f"S-DPO, {kind}: reward"] = aligned - asked["sft"]
    return out


def ndcg(scores: NDArray[np.float64], examples: Sequence[RankingExample]) -> float:
    """Return the mean NDCG@10."""
    ranks, ties = metrics.target_ranks(scores, [e.target_index for e in examples])
    return float(metrics.expectation(lambda r: metrics.ndcg(r, 10), ranks, ties).mean())


def choose(asked: Mapping[str, NDArray[np.float64]], popular: NDArray[np.float64], rows: Any) -> dict[str, Any]:
    """Return λ and the alignment of each kind whose reward is best on validation rows."""
    by_lambda = [ndcg(asked["sft"] - value * popular, rows) for value in LAMBDAS]
    chosen: dict[str, Any] = {"lambda": float(LAMBDAS[int(np.argmax(by_lambda))])}
    for kind in ("popularity", "in-batch"):
        names = [n for n in asked if n.startswith(kind)]
        chosen[kind] = max(names, key=lambda n: ndcg(asked[n] - asked["sft"], rows))
    return chosen


def measure(folder: Path) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """Return kind of lists → evaluation on test rows, and what validation rows chose."""
    run = open_run(folder)
    data, seed = run.data, run.recipe.seed
    models = {name: run.stage(name).load(8) for name in run.models}
    results: dict[str, Evaluation] = {}
    choices: dict[str, Any] = {}
    for how, title in LISTS.items():
        answers = {}
        for split in ("validation", "test"):
            rows = resample_negatives(
                getattr(data, split), data, how, seed=seed, size=SIZE, excluded=data.known_interactions(split)
            )
            asked = {name: np.asarray(model.score(rows)) for name, model in models.items()}
            answers[split] = rows, asked, log_popularity(data, rows)
        rows, asked, popular = answers["validation"]
        chosen = choices[title] = choose(asked, popular, rows)
        rows, asked, popular = answers["test"]
        table = scores(asked, popular, chosen)
        rankers = [Scored(name, values) for name, values in table.items()]
        control = "SFT: log π − λ·log popularity"
        pairs = [(name, "SFT: log π") for name in table if name != "SFT: log π"]
        pairs += [(name, control) for name in table if name.startswith("S-DPO")]
        audit = NoAudit("lists are drawn for this question alone")
        results[title] = evaluate(rankers, rows, data.catalogue, audit=audit, ks=[10], compare=pairs, generate=False)
    return results, choices


def table(title: str, result: Evaluation) -> dict[str, Any]:
    """Return the section's table for one kind of lists."""
    rows = []
    for name, own in result.metrics.items():
        cells = [shown(own["ndcg@10"])]
        for against in ("SFT: log π", "SFT: log π − λ·log popularity"):
            found = [c for c in result.comparisons if (c.ranker, c.against, c.metric) == (name, against, "ndcg@10")]
            cells += [f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]".replace("-", "−") for c in found] or ["–"]
        rows.append([name, *cells])
    columns = ["score", "NDCG@10", "minus SFT: log π", "minus SFT: log π − λ·log popularity"]
    return {"title": f"Negatives: {title} ({result.n} test rows)", "columns": columns, "rows": rows}


def main(folder: Path) -> None:
    """Measure a run and write the section's file."""
    results, choices = measure(folder)
    old = json.loads(SECTION.read_text(encoding="utf-8")) if SECTION.is_file() else {"id": 58}
    tables = [table(title, result) for title, result in results.items()]
    say(f"chosen on validation rows: {choices}")
    written = json.dumps(old | {"tables": tables}, indent=1, ensure_ascii=False)
    SECTION.write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
