"""Curves from the logs, log-probabilities from the predictions."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from prefrec.evaluation import read_predictions
from prefrec_lab.studies import dynamics

STUDY = dynamics.DYNAMICS


def test_step_0_is_the_reference(summary, place, data):
    """Its log-probability is worked out of the first point; here it is compared with what the reference said."""
    curves = pl.DataFrame(summary["tables"]["curves"], infer_schema_length=None)
    stored = [load_file(p)["ref_logps"] for p in (place / "runs" / "seed-0" / "reference").iterdir()]
    (evaluated,) = [r for r in stored if r.shape == (min(dynamics.EVAL_ROWS, len(data.validation)), 4)]
    for name, loss in (("dpo-watched", np.log(2)), ("s-dpo-watched", np.log(4))):
        (row,) = curves.filter(variant=name, step=0).to_dicts()
        assert row["logps/chosen"] == pytest.approx(evaluated[:, 0].mean(), abs=1e-4)
        assert (row["loss"], row["rewards/chosen"]) == (pytest.approx(loss), 0)


def test_log_probabilities_are_those_of_the_predictions(summary, place):
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    frame = read_predictions(place / "runs" / "seed-0" / "predictions.parquet")
    for variant in ("sft", "dpo-watched", "s-dpo-watched"):
        chosen, rejected = [], []
        for row in frame.filter(ranker=variant).iter_rows(named=True):
            of = dict(zip(row["candidates"], row["scores"], strict=True))
            chosen.append(of.pop(row["target"]))
            rejected.append(np.mean(list(of.values())))
        got = {r["quantity"]: r["mean"] for r in table.filter(variant=variant).iter_rows(named=True)}
        want = {"chosen": np.mean(chosen), "rejected": np.mean(rejected)}
        assert got == pytest.approx(want | {"margin": want["chosen"] - want["rejected"]})


def test_the_loss_alone_is_compared_on_the_same_rows(summary):
    means = {(r["variant"], r["quantity"]): r["mean"] for r in summary["tables"]["table"]}
    rows = [r for r in summary["tables"]["loss-alone"] if r["variant"] == "s-dpo-watched"]
    assert [r["quantity"] for r in rows] == ["chosen", "rejected", "margin"]
    for r in rows:
        want = means["s-dpo-watched", r["quantity"]] - means["dpo-pairs-watched", r["quantity"]]
        assert r["difference"] == pytest.approx(want)
        assert r["difference_low"] <= want <= r["difference_high"]
    assert summary["facts"][0].startswith("S-DPO − DPO with the same number of negatives, log-prob of the chosen: ")
