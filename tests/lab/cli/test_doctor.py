"""`prefrec lab doctor`: a table for people, JSON for machines."""

import json

import torch

from command import prefrec, succeed


def test_people_see_what_is_there_and_what_is_slow_and_machines_get_json():
    out = succeed("lab", "doctor")
    assert f"torch {torch.__version__}" in out
    assert f"{torch.get_num_threads()} of " in out
    assert "GFLOP/s (cpu)" in out
    if not torch.cuda.is_available():
        assert "• torch sees no GPU" in out
    found = json.loads(succeed("lab", "doctor", "--json"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["rates"]["cpu"]["float32"] > 0
    assert found["findings"] or torch.cuda.is_available()
    assert all(f["what"] and f["remedy"] for f in found["findings"])


def test_a_step_on_a_card_is_predicted():
    out = succeed("lab", "doctor", "--model", "random:tiny", "--negatives", 3, "--card", "a100-40gb")
    card = "a100-40gb: 37.3 GiB, 312 TFLOP/s"
    for part in ("random:tiny in bfloat16", card, "a prompt of 256 tokens, 4 answers of 8"):
        assert part in out


def test_an_unknown_card_is_named():
    outcome = prefrec("lab", "doctor", "--model", "random:tiny", "--card", "h1")
    assert outcome.code
    assert "card 'h1' is unknown: expected one of h200-141gb, h100-80gb" in outcome.err


def test_scores_in_shared_calls_are_compared_with_those_alone(adapted_run):
    found = json.loads(succeed("lab", "doctor", "--run", adapted_run, "--json"))
    assert (found["ranker"], found["dtype"], found["questions"], found["lists"]) == ("s-dpo", "float32", 40, 0)
    assert found["nats"] < 1e-3
    out = succeed("lab", "doctor", "--run", adapted_run)
    assert "s-dpo in float32: in shared calls, scores of 40 questions differ from those of each question alone" in out
