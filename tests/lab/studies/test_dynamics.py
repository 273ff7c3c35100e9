"""Curves from the logs, log-probabilities from the predictions."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from prefrec.evaluation import read_predictions
from prefrec_lab.studies.carry_out import carry_out
from prefrec_lab.studies.dynamics import DYNAMICS, EVAL_ROWS, vary


@pytest.fixture(scope="module")
def summary(base, place):
    return carry_out(DYNAMICS, base, [0, 1], place)


def test_both_are_watched_alike(base, data):
    recipe = vary(base, data)
    assert [(a.name, a.loss, a.num_negatives) for a in recipe.align] == [
        ("dpo-watched", "dpo", 1),
        ("dpo-pairs-watched", "dpo", 3),
        ("s-dpo-watched", "softmax_dpo", 3),
    ]
    assert {(a.eval_rows, a.eval_steps) for a in recipe.align} == {(48, 1)}


def test_step_0_is_the_reference(summary, place, data):
    """Its log-probability is worked out of the first point; here it is compared with what the reference said."""
    curves = pl.DataFrame(summary["tables"]["curves"], infer_schema_length=None)
    want = []
    for s in (0, 1):
        stored = [load_file(p)["ref_logps"] for p in (place / "runs" / f"seed-{s}" / "reference").iterdir()]
        (evaluated,) = [r for r in stored if r.shape == (min(EVAL_ROWS, len(data.validation)), 4)]
        want.append(evaluated[:, 0].mean())
    for name, loss in (("dpo-watched", np.log(2)), ("s-dpo-watched", np.log(4))):
        (row,) = curves.filter(variant=name, step=0).to_dicts()
        assert row["logps/chosen"] == pytest.approx(np.mean(want), abs=1e-4)
        assert (row["loss"], row["rewards/chosen"]) == (pytest.approx(loss), 0)


def test_log_probabilities_are_those_of_the_predictions(summary, place):
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    frames = [read_predictions(place / "runs" / f"seed-{s}" / "predictions.parquet") for s in (0, 1)]
    for variant in ("sft", "dpo-watched", "s-dpo-watched"):
        chosen, rejected = [], []
        for row in (r for f in frames for r in f.filter(ranker=variant).iter_rows(named=True)):
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
    told = "S-DPO − DPO with the same number of negatives, log-prob of the chosen: "
    assert summary["facts"][0].startswith(told)
