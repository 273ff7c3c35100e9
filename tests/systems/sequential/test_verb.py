"""`prefrec sequential`, and its outcome in `prefrec evaluate`."""

import json

from command import prefrec, succeed


def test_train_then_evaluate(place, tmp_path):
    out = tmp_path / "GRU4Rec"
    options = ("--model", "GRU4Rec", "--epochs", 2, "--batch-size", 64, "--learning-rate", 1e-2)
    options += ("--grid", "dropout=0.1,0.3")
    done = prefrec("sequential", place.data, out, *options)
    assert done.code == 0, done.err
    assert done.out == f"Weights: {out}/model.safetensors\n"
    assert "GRU4Rec, dropout 0.3: validation NDCG@10" in done.err
    assert "GRU4Rec: unchanged" in prefrec("sequential", place.data, out, *options).err
    printed = succeed(
        "evaluate", place.data, "--sequential", out, "--out", tmp_path / "evaluation", "--no-zero-shot", "--json"
    )
    evaluation = json.loads(printed)["evaluation"]
    assert list(evaluation["metrics"])[-1] == "GRU4Rec"
    assert {c["ranker"] for c in evaluation["comparisons"]} == {"GRU4Rec"}


def test_wrong_choices_are_named(place, tmp_path):
    done = prefrec("sequential", place.data, tmp_path / "out", "--model", "BERT4Rec")
    assert done.code == 1
    assert "error: --model: Input should be 'GRU4Rec', 'Caser' or 'SASRec' (given: 'BERT4Rec')" in done.err
    done = prefrec("evaluate", place.data, "--sequential", tmp_path / "none")
    assert done.code == 1
    assert f"error: {tmp_path}/none holds no sequential recommender" in done.err
