"""A recipe with Chat-REC and a served model: rows of its table, beside the rankers they are to equal."""

import json

import polars as pl
import pytest

from prefrec.data import prepare
from prefrec.errors import ConfigError
from prefrec.evaluation import read_predictions
from prefrec.pipeline.baselines.chat_rec import chat_rec_ranker
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.chatrec import ChatRecConfig, EndpointChat
from servers import completions_server


def _recipe(recipe: Recipe, *rankers: dict) -> Recipe:
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "sequential": [], "rankers": list(rankers)}
    raw["evaluate"] |= {"rows": 6, "generate_rows": 2}
    return Recipe.model_validate(raw)


CHAT = {"kind": "chat-rec", "retriever": "popularity", "keep": 3, "max_new_tokens": 6, "max_length": 2000}


def test_the_table_has_them_and_a_served_model_scores_as_the_same_model_here(recipe, tmp_path):
    with completions_server(recipe.model.name, tmp_path / "log") as url:
        asked = _recipe(recipe, CHAT, {"kind": "endpoint", "name": "served", "url": url})
        run_recipe(asked, tmp_path / "run")
        answered = (tmp_path / "log").stat().st_size
        run_recipe(asked, tmp_path / "run")  # known answers are not asked for again
        assert (tmp_path / "log").stat().st_size == answered
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    means = {name: {m: of["mean"] for m, of in row.items()} for name, row in metrics["evaluation"]["metrics"].items()}
    assert list(means)[-2:] == ["Chat-REC", "served"]
    assert means["served"] == pytest.approx(means["zero-shot"])
    predictions = read_predictions(tmp_path / "run" / "predictions.parquet")
    texts = {
        name: predictions.filter(pl.col("ranker") == name)["generated"].drop_nulls().to_list()
        for name in ("served", "zero-shot", "Chat-REC")
    }
    assert texts["served"] == texts["zero-shot"]
    assert {name: len(said) for name, said in texts.items()} == {"served": 2, "zero-shot": 2, "Chat-REC": 2}


def test_the_retriever_may_be_a_ranker_made_before(recipe, tmp_path):
    run_recipe(_recipe(recipe, {**CHAT, "name": "first"}, {**CHAT, "name": "second", "retriever": "first"}), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["metrics"]
    assert metrics["first"] == metrics["second"]  # nonsense leaves the order twice


def test_an_unknown_retriever_is_named(recipe, tmp_path):
    with pytest.raises(
        ConfigError, match=r"Chat-REC.retriever: there is no 'SASRec' here; there are random, .*zero-shot"
    ):
        run_recipe(_recipe(recipe, {**CHAT, "retriever": "SASRec"}), tmp_path)


def test_a_server_and_a_table_of_users_as_settings(recipe, tmp_path):
    data = prepare(recipe.data)
    user = data.test[0].user_id
    (tmp_path / "people.csv").write_text(f"user_id,age\n{user},24\n", encoding="utf-8")
    config = ChatRecConfig(server={"url": "http://127.0.0.1:9/v1"}, users=tmp_path / "people.csv")
    ranker = chat_rec_ranker(config, data, recipe.model, {}, seed=0)
    assert isinstance(ranker.chat, EndpointChat)
    assert ranker.profiles.of(user, [])[0] == "age: 24"
    assert ranker.domain == "movies"
