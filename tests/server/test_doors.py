"""Doors to a run whose limits measure a few users: HTTP and the command line answer everybody, from the whole log."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from starlette.testclient import TestClient

from command import succeed
from prefrec.pipeline.opened import open_run
from prefrec.recommender import Recommender
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine

USERS, SOLD, LENGTH, K = 40, 24, 6, 5
NEW = [f"n{n}" for n in range(4)]
"""Items without interactions."""


@pytest.fixture(scope="module")
def log() -> dict[str, list[str]]:
    """User → items, oldest first; u39 has one item alone."""
    rng = np.random.default_rng(3)
    return {
        f"u{user:02}": [f"i{n}" for n in rng.permutation(SOLD)[: 1 if user == USERS - 1 else 8 + user % 5]]
        for user in range(USERS)
    }


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory) -> Path:
    """A finished run of counts, with fewer measured rows than there are users, and a rule for new items."""
    own = tmp_path_factory.mktemp("doors")
    rows = [(user, item, 1_600_000_000 + 3600 * n) for user, items in log.items() for n, item in enumerate(items)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(own / "log.csv")
    kinds = ("tent", "lamp", "stove")
    titles = [(item, f"{kinds[n % 3]} {n}") for n, item in enumerate([*(f"i{n}" for n in range(SOLD)), *NEW])]
    pl.DataFrame(titles, schema=["item_id", "title"], orient="row").write_csv(own / "items.csv")
    data = {"source": "files", "interactions": str(own / "log.csv"), "items": str(own / "items.csv")}
    data |= {"max_validation_rows": 25, "max_test_rows": 5, "unseen_items": True, "history_length": LENGTH}
    data |= {"candidates": {"size": 5, "kind": "uniform"}}
    baselines = ["popularity", "item-kNN"]
    evaluate = {"zero_shot": False, "baselines": baselines}
    recipe = {"name": "doors", "data": data, "evaluate": evaluate, "answers": {"new_every": 5}}
    (own / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    succeed("run", own / "recipe.yaml", "--out", own / "run")
    return own / "run"


@pytest.fixture(scope="module")
def client(folder):
    with TestClient(create_app(open_engine(open_run(folder), ["item-kNN"]), Settings("doors", ""))) as client:
        yield client


def _served(client, **body):
    answer = client.post("/v1/recommend", json={"k": K, "ranker": "item-kNN"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _ids(answer):
    return [line["item_id"] for line in answer["ranking"]]


def test_every_user_is_answered_from_the_whole_log_by_http_and_by_the_command_line(client, folder, log, tmp_path):
    assert len(open_run(folder).data.test) == 5
    out = tmp_path / "all.parquet"
    succeed("recommend", folder, "--ranker", "item-kNN", "--all-users", "--k", K, "--out", out)
    by_user = dict(pl.read_parquet(out).group_by("user_id").agg("item_id").iter_rows())
    assert {*by_user} == {*log}
    for user, items in log.items():
        answer = _served(client, user_id=user, show_history=True)
        assert [item["item_id"] for item in answer["history"]] == items[-LENGTH:]
        assert not {*_ids(answer)} & {*items}
        assert by_user[user] == _ids(answer)
    printed = succeed("recommend", folder, "--ranker", "item-kNN", "--users", "u03", "--k", K, "--json")
    assert [line["item_id"] for line in json.loads(printed)] == by_user["u03"]


def test_users_of_one_request_have_the_answers_of_a_request_each(client, log):
    """In the order of the request, under its rules, also for a user who is named twice."""
    users, rules = ["u03", *log, "u03"], {"deny": ["i1", "i2"], "show_history": True}
    sent = {"k": K, "ranker": "item-kNN", "user_ids": users, **rules}
    answer = client.post("/v1/recommend-users", json=sent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answers"] == [_served(client, user_id=user, **rules) for user in users]


@pytest.mark.parametrize(
    ("users", "status", "message"),
    [
        (["u03", "nobody"], 404, "nobody"),
        ([], 422, "user_ids"),
        (["u03"] * 101, 422, "user_ids"),
    ],
)
def test_users_that_are_refused(client, users, status, message):
    answer = client.post("/v1/recommend-users", json={"user_ids": users})
    assert answer.status_code == status
    assert message in answer.text


def test_new_items_get_their_places_at_every_door(client, folder, log, tmp_path):
    succeed("export", folder, "--ranker", "item-kNN", "--out", tmp_path / "exported")
    exported, recommender = (
        Recommender.from_pretrained(tmp_path / "exported"),
        Recommender.from_run(folder, "item-kNN"),
    )
    assert not {*NEW} & {*_ids(_served(client, user_id="u03", new_every=0))}
    for user in [*log][:5]:
        served = _ids(_served(client, user_id=user))
        assert [item in NEW for item in served] == [False] * 4 + [True]
        assert [line.item_id for line in recommender.recommend(user=user, k=K)] == served
        history = log[user]
        assert [line.item_id for line in exported.recommend(history, K)] == [
            line.item_id for line in recommender.recommend(history, K)
        ]
    twice = _ids(_served(client, user_id="u03", new_every=2))
    assert [item in NEW for item in twice] == [False, True, False, True, False]
    named = succeed(
        "recommend", folder, "--ranker", "item-kNN", "--users", "u03", "--new-every", 2, "--k", K, "--json"
    )
    assert [line["item_id"] for line in json.loads(named)] == twice


def test_a_rule_of_answers_changes_no_results(folder, tmp_path):
    raw = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw | {"answers": {"new_every": 7}}))
    assert open_run(folder).outdated == ""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))


@pytest.mark.parametrize("every", [-1, "2", True, 1.5])
def test_what_is_no_number_of_places_is_refused(client, every):
    answer = client.post("/v1/recommend", json={"history": ["i1"], "new_every": every})
    assert answer.status_code == 422
