"""Every ranker of the table gives one answer to one history: alone, in a list, for all users, and over HTTP."""

from datetime import UTC, datetime
from functools import partial
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from prefrec import recommender
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.baselines import BASELINES, TIMED, PopularityRanker
from prefrec.recipe import Recipe
from prefrec.recommend.popular import Popular
from prefrec.recommender import Recommender
from prefrec_server.app import Settings, create_app
from prefrec_server.server import open_engine
from tiny_run import ITEMS, USERS, tiny_recipe, write_model, write_shop

IDS = [str(n) for n in range(ITEMS)]
COUNTS = ["title TF-IDF", "window co-occurrence", "transition graph", "popularity"]
SYSTEMS = [
    {"kind": "blend", "parts": COUNTS},
    {"kind": "title-tower", "vectors": "tfidf", "width": 8, "epochs": 1},
    {"kind": "sequential", "model": "SASRec", "epochs": 1, "hidden_size": 8},
    {"kind": "sequential", "model": "GRU4Rec", "epochs": 1, "hidden_size": 8},
    {"kind": "sequential", "model": "Caser", "epochs": 1, "hidden_size": 8},
    {"kind": "morec", "hidden_size": 8, "inner_size": 16, "n_layers": 1, "epochs": 1},
    {"kind": "blend", "name": "reranked", "parts": ["blend", "title-tower", "zero-shot"], "rows": 8},
    {"kind": "retrieve-then-rank", "name": "two", "retriever": "blend", "ranker": "zero-shot", "retrieve": 5},
]
NAMES = ["blend", "title-tower", "SASRec", "GRU4Rec", "Caser", "MoRec", "reranked", "two", "zero-shot", "items"]
UNREAD = [PopularityRanker.name, *TIMED]
"""Rankers that ignore the history, and so an empty one, too."""
SERVED = [name for name in BASELINES if name not in ("item only", "buy again")]


def _dated(folder):
    """A log with dates, whose users and items are numbers, as positions in a list are."""
    paths = write_shop(folder)
    log = pl.read_csv(paths["interactions"]).with_columns(
        pl.col("user_id").str.slice(1).cast(int),
        pl.col("item_id").str.slice(1),
        timestamp=int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) + pl.col("timestamp") * 3600,
    )
    log.write_csv(paths["interactions"])
    pl.read_csv(paths["items"]).with_columns(pl.col("item_id").str.slice(1)).write_csv(paths["items"])
    return paths


def _run(folder, raw, **changes):
    raw = raw | {"sft": None, "align": []} | changes
    raw["evaluate"] |= {
        "rows": 4,
        "full_rows": 0,
        "generate_rows": 0,
        "baselines": SERVED,
        "zero_shot": raw["sft"] is None,
    }
    run_recipe(Recipe.model_validate(raw), folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def doors(tmp_path_factory, bpe_tokenizer):
    """Name → a recommender, and a function that asks a server, for the lines alone or at a path for whole answers."""
    folder = tmp_path_factory.mktemp("doors")
    shop, model = _dated(folder / "shop"), write_model(folder / "model", bpe_tokenizer)
    raw = tiny_recipe(shop, model)
    short = raw["sft"] | {"rows": 8, "epochs": 1, "eval_rows": 0}
    items = _run(folder / "items", raw | {"model": raw["model"] | {"answers": "items"}}, sft=short, lora=None)
    run = _run(folder / "run", raw, rankers=[system | _encoder(system, model) for system in SYSTEMS])
    engines = {"items": open_engine(items, ["sft"])}
    rankers = [*(name for name in NAMES if name != "items"), *SERVED]
    engines |= dict.fromkeys(rankers, open_engine(run, rankers))
    clients = {name: TestClient(create_app(engine, Settings("tiny", "llama"))) for name, engine in engines.items()}
    recommenders = {"items": Recommender.from_run(items.folder, "sft")}
    recommenders |= {name: Recommender.from_run(run.folder, name) for name in rankers}

    def post(name, path, **body):
        answer = clients[name].post(path, json=body | {"ranker": recommenders[name].stage.name})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(name, told=None, **body):
        answer = post(name, "/v1/recommend", **body)
        assert told in (None, answer["ranker"])
        return [(row["item_id"], row["score"]) for row in answer["ranking"]]

    yield lambda name, path=None: (recommenders[name], partial(post, name, path) if path else partial(ask, name))
    for engine in {*engines.values()}:
        engine.close()


def _encoder(section, model):
    return {"encoder": str(model)} if section["kind"] == "morec" else {}


def _pairs(rows):
    return [(row.item_id, row.score) for row in rows]


def _same(want, got):
    """The same items in the same order; items whose scores are equal up to rounding may change places."""
    assert len(want) == len(got)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose([s for _, s in got], [s for _, s in want], **close)
    scores = dict(want)
    both = [(scores[item], score) for item, score in got if item in scores]
    np.testing.assert_allclose(*zip(*both, strict=True), **close)
    moved = {score for item, score in got if item not in scores}
    assert all(np.isclose(score, want[-1][1], **close) for score in moved)


histories = st.lists(st.lists(st.sampled_from(IDS), max_size=6), min_size=1, max_size=5)
users = st.lists(st.one_of(st.integers(0, USERS), st.sampled_from(["-", "u 1", "é"])), unique=True, min_size=5)


@pytest.mark.parametrize("name", [*NAMES, *SERVED])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=histories,
    names=users,
    k=st.integers(1, 9),
    first=st.integers(0, ITEMS - 12),
    block=st.integers(1, 4),
    logged=st.lists(st.integers(0, USERS - 1), unique=True, min_size=1, max_size=3),
)
def test_a_history_has_one_answer_in_every_door(doors, name, asked, names, k, first, block, logged):
    rec, ask = doors(name)
    # The first item that is allowed is what rankers see as the target.
    allow = IDS[first:]
    alone = [_pairs(rec.recommend(one, k, allow=allow)) for one in asked]
    together = rec.recommend(asked, k, allow=allow)
    with patch.object(recommender, "CHUNK", block), patch.object(recommender, "QUICK_CHUNK", block):
        named = rec.recommend_all(k=k, histories=dict(zip(names, asked, strict=False)), allow=allow)
        known = rec.recommend_all(k=k, users=logged, allow=allow)
    for user, history, want, rows in zip(names, asked, alone, together, strict=False):
        _same(want, _pairs(rows))
        _same(want, named.filter(user_id=str(user)).select("item_id", "score").rows())
        _same(want, ask(history=history, k=k, allow=allow))
    for user in logged:
        want = _pairs(rec.recommend(user=user, k=k, allow=allow))
        _same(want, known.filter(user_id=str(user)).select("item_id", "score").rows())
        _same(want, ask(user_id=str(user), k=k, allow=allow))


@pytest.mark.parametrize("name", [name for name in (*NAMES, *SERVED) if name not in UNREAD])
def test_an_empty_history_gets_recent_popularity(doors, name):
    rec, ask = doors(name)
    popular = Popular.of(rec.data)
    kept = [item for item in popular.ids if item not in ("3", "4")]
    want = [(item, popular.counts[popular.position[item]]) for item in kept[:5]]
    assert _pairs(rec.recommend([], 5, deny=["3", "4"])) == want
    assert _pairs(rec.recommend([["7"], []], 5, deny=["3", "4"])[1]) == want
    frame = rec.recommend_all(k=5, histories={1: [], 2: ["7"]}, deny=["3", "4"])
    assert frame.filter(user_id="1").select("item_id", "score").rows() == want
    assert ask(told=popular.name, k=5, deny=["3", "4"]) == want


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/also-bought", "/v1/similar"])
def test_what_rules_name_and_no_item_has_is_told(doors, path, capsys):
    rec, ask = doors("blend", path)
    about = {"history": ["2"]} if path == "/v1/recommend" else {"item": "2"}
    boost = {"title": {"Red Emma": 2, "Nothing": 2}}
    rules = {"allow": [*IDS[:9], "888"], "deny": ["999", "3", "999"], "boost": boost}
    assert ask(**about, **rules)["unmatched"] == ["allow: 888", "deny: 999", "boost: title=Nothing"]
    assert ask(**about)["unmatched"] == []
    rec.recommend(["2"], **rules)
    told = " ".join(capsys.readouterr().err.split())
    assert "allow: no item has the title or id '888'" in told
    assert "deny: no item has the title or id '999'" in told
    assert "boost: no item has the title 'Nothing'" in told


@pytest.mark.parametrize("name", ["blend", "reranked", "two"])
def test_placeholders_that_look_like_validation_examples_change_nothing(doors, name):
    """The name of a user of the log, and that user's validation target as the first item that is ranked."""
    rec, _ = doors(name)
    held = min(rec.data.validation, key=lambda e: int(e.user_id))
    allow = rec.data.catalogue.ids[rec.data.catalogue.index[held.target] :]
    want = _pairs(rec.recommend(["3"], 5, allow=allow, exclude_seen=False))
    size = int(held.user_id) + 2
    for rows in rec.recommend([["3"]] * size, 5, allow=allow, exclude_seen=False):
        _same(want, _pairs(rows))
    named = rec.recommend_all(k=5, histories={held.user_id: ["3"], "x": ["3"]}, allow=allow, exclude_seen=False)
    for user in (held.user_id, "x"):
        _same(want, named.filter(user_id=user).select("item_id", "score").rows())
