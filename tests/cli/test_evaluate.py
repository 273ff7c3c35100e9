"""`prefrec evaluate`: scores of any software on targets, from files."""

import json

import numpy as np
import pytest

from command import refused, succeed

USERS = 40


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`good.run` finds most targets, `poor.csv` few; `test.qrels` has one target a user."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    good, poor, qrels = [], ["user,item,score"], []
    for n in range(USERS):
        order = rng.permutation(12)
        qrels.append(f"u{n} 0 i{order[0]} 1")
        good += [f"u{n} Q0 i{item} {place} {12 - place} x" for place, item in enumerate(order[: 6 + n % 4], 1)]
        poor += [f"u{n},i{item},{place}" for place, item in enumerate(order)]
    good.append("stranger Q0 i1 1 1.0 x")
    for name, lines in {"good.run": good, "poor.csv": poor, "test.qrels": qrels}.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return "--scores", "poor.csv", "--scores", "ours=good.run", "--targets", "test.qrels"


def test_runs_are_measured_and_compared_with_the_first(files):
    out = " ".join(succeed("evaluate", *files).split())
    assert "n = 40 users; 95% intervals over users and targets" in out
    assert "ours: 1 of the users with scores have no target, and are left out." in out
    assert "ours − poor: NDCG@10 +1.000 [+1.000, +1.000]: significant in the one comparison (p < 0.001)." in out
    assert "RECALL" not in out  # with one target it is the hit rate
    found = json.loads(succeed("evaluate", *files, "--ks", "3", "--json"))
    assert found["metrics"]["ours"]["ndcg@3"]["mean"] == 1
    assert found["metrics"]["poor"]["hr@3"]["mean"] == 0
    assert found["without_targets"] == {"poor": 0, "ours": 1}


def test_several_targets_have_recall_and_intervals_over_users(files, tmp_path):
    with (tmp_path / "test.qrels").open("a") as more:
        more.write("u0 0 i100 2\nu99 0 i1 1\n")
    out = " ".join(succeed("evaluate", *files).split())
    assert "n = 41 users, 1 of them with several targets; 95% intervals over users" in out
    assert "RECALL@10" in out
    assert "poor: 1 of 41 users with targets have no score, and count with 0." in out


def test_wrong_use_is_told(files):
    told = refused("evaluate", "--scores", "good.run", "--scores", "good.run", "--targets", "test.qrels")
    assert "two runs have the name 'good'; name them, as in --scores ours=FILE" in told
    assert "--scores" in refused("evaluate", "--targets", "test.qrels", code=2)
    assert "none.csv" in refused("evaluate", "--scores", "none.csv", "--targets", "test.qrels")
