"""A recipe with Chat-REC and a served model: rows of its table, beside the rankers they are to equal."""

import json

import polars as pl
import pytest
from pydantic import ValidationError

from prefrec.data import prepare
from prefrec.evaluation import read_predictions
from prefrec.pipeline.entry import RunInputs, baseline_entry, lm_entry
from prefrec.pipeline.kinds import ranker_kind
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec_systems.chatrec import ChatRecConfig, EndpointChat
from prefrec_systems.chatrec.stage import chat_rec_ranker
from prefrec_systems.endpoint import EndpointConfig, OpenAIClient
from servers import completions_server


def _recipe(recipe: Recipe, *rankers: dict) -> Recipe:
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": list(rankers)}
    raw["evaluate"] |= {"rows": 6, "generate_rows": 2}
    raw["model"]["objective"] = "tokens"  # as a served model scores
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


def test_an_unknown_retriever_is_named(recipe):
    with pytest.raises(
        ValidationError,
        match=r"Chat-REC.retriever: no earlier ranker is called 'SASRec': name one of random, .*zero-shot",
    ):
        _recipe(recipe, {**CHAT, "retriever": "SASRec"})


SERVED = {"url": "http://127.0.0.1:9/v1", "model": "m"}
KINDS = {
    "endpoint": {"kind": "endpoint", "name": "E", **SERVED},
    "chat": {"kind": "chat-rec", "name": "C", "server": SERVED},
    "here": {"kind": "chat-rec", "name": "H"},
    "shown": {"kind": "chat-rec", "name": "S", "server": SERVED, "retriever": "zero-shot"},
}


@pytest.mark.parametrize(
    ("changes", "asked_anew"),
    [
        ({"lora": {"r": 2}}, set()),
        ({"seed": 1}, {"chat", "here", "shown"}),  # of ties of the retriever
        ({"model": {"dtype": "bfloat16"}}, {"here", "shown"}),
        ({"model": {"chat": True}}, {"endpoint", "shown"}),
    ],
)
def test_what_the_answers_depend_on(recipe, data, tmp_path, changes, asked_anew):
    assert _other_keys(recipe, changes, data, tmp_path) == asked_anew


def _other_keys(recipe: Recipe, changes: dict, data, folder) -> set[str]:
    """Which of `KINDS` have another key where these fields of the recipe change."""
    raw = recipe.model_dump(mode="json")
    merged = {k: raw[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    before, after = (
        _keys(Recipe.model_validate(raw | more | {"rankers": list(KINDS.values())}), data, folder)
        for more in ({}, merged)
    )
    return {kind for kind in KINDS if before[kind] != after[kind]}


def _keys(recipe: Recipe, data, folder) -> dict[str, str]:
    inputs = RunInputs(data, "data", recipe.model, recipe.lora, recipe.seed)
    before = {"zero-shot": lm_entry("zero-shot", None, data, recipe.model)}
    before |= {"item-kNN": baseline_entry(inputs, "item-kNN")}
    stages = zip(KINDS, recipe.rankers, strict=True)
    return {kind: ranker_kind(c.kind).entry(inputs, c, folder / c.name, before).key for kind, c in stages}


def test_the_key_holds_the_model_as_the_server_names_it(recipe, data, tmp_path, monkeypatch):
    """So an unnamed model is the one that was served, and known answers are found by its name without a server."""

    def key(model: str | None, kind: str) -> str:
        server = {"url": SERVED["url"], "model": model}
        config = EndpointConfig(**server) if kind == "endpoint" else ChatRecConfig(server=server)
        inputs = RunInputs(data, "data", recipe.model, recipe.lora, recipe.seed)
        before = {"item-kNN": baseline_entry(inputs, "item-kNN")}
        return ranker_kind(config.kind).entry(inputs, config, tmp_path, before).key

    for kind in ("endpoint", "chat-rec"):
        keys = []
        for served in ("one", "two"):
            with monkeypatch.context() as patch:
                patch.setattr(OpenAIClient, "models", lambda client, served=served: [served])
                keys.append(key(None, kind))
        assert keys == [key("one", kind), key("two", kind)]
        assert keys[0] != keys[1]


def test_a_server_and_a_table_of_users_as_settings(recipe, tmp_path):
    data = prepare(recipe.data)
    user = data.test[0].user_id
    (tmp_path / "people.csv").write_text(f"user_id,age\n{user},24\n", encoding="utf-8")
    config = ChatRecConfig(server={"url": "http://127.0.0.1:9/v1"}, users=tmp_path / "people.csv")
    inputs = RunInputs(data, "", recipe.model, None, 0)
    ranker = chat_rec_ranker(config, inputs, baseline_entry(inputs, "item-kNN"))
    assert isinstance(ranker.chat, EndpointChat)
    assert ranker.profiles.lines(user, [])[0] == "age: 24"
    assert ranker.domain == "movies"
