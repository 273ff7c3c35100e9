"""A recipe with Chat-REC and a served model: rows of its table, beside the rankers they are to equal."""

import json

import polars as pl
import pytest
from pydantic import ValidationError

from prefrec.evaluation import read_predictions
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.stages import stage_class
from prefrec.stages.baseline import BaselineStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import LMStage
from prefrec_systems.chatrec import ChatRecConfig, EndpointChat
from prefrec_systems.chatrec.stage import chat_rec_ranker
from prefrec_systems.endpoint import EndpointConfig, OpenAIClient
from servers import completions_server

CHAT = {"kind": "chat-rec", "retriever": "popularity", "keep": 3, "max_new_tokens": 6, "max_length": 2000}


@pytest.mark.long
def test_the_table_has_them_and_a_served_model_scores_as_the_same_model_here(recipe, alone, tmp_path):
    as_served = {"model": recipe.model.model_dump(mode="json") | {"objective": "tokens"}}
    with completions_server(recipe.model.name, tmp_path / "log") as url:
        served = {"kind": "endpoint", "name": "served", "url": url}
        asked = alone(CHAT, served, evaluate={"rows": 6, "generate_rows": 2}, **as_served)
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


def test_an_unknown_retriever_is_named(alone):
    message = r"Chat-REC.retriever: no earlier ranker is called 'SASRec': name one of random, .*zero-shot"
    with pytest.raises(ValidationError, match=message):
        alone({**CHAT, "retriever": "SASRec"})


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
    raw = recipe.model_dump(mode="json") | {"rankers": list(KINDS.values())}
    changed = raw | {k: raw[k] | v if isinstance(v, dict) else v for k, v in changes.items()}

    def keys(raw) -> dict[str, str]:
        asked = Recipe.model_validate(raw)
        inputs = RunInputs(data, "data", asked.model, asked.lora, asked.seed)
        before = {"zero-shot": LMStage("zero-shot", None, data, asked.model)}
        before |= {"item-kNN": BaselineStage(inputs, "item-kNN")}
        stages = zip(KINDS, asked.rankers, strict=True)
        return {kind: stage_class(c.kind)(inputs, c, tmp_path / c.name, before).key for kind, c in stages}

    before, after = keys(raw), keys(changed)
    assert {kind for kind in KINDS if before[kind] != after[kind]} == asked_anew


def test_the_key_holds_the_model_as_the_server_names_it(recipe, data, tmp_path, monkeypatch):
    """So an unnamed model is the one that was served, and known answers are found by its name without a server."""

    def key(model: str | None, kind: str) -> str:
        server = SERVED | {"model": model}
        config = EndpointConfig(**server) if kind == "endpoint" else ChatRecConfig(server=server)
        inputs = RunInputs(data, "data", recipe.model, recipe.lora, recipe.seed)
        before = {"item-kNN": BaselineStage(inputs, "item-kNN")}
        return stage_class(config.kind)(inputs, config, tmp_path, before).key

    for kind in ("endpoint", "chat-rec"):
        keys = []
        for served in ("one", "two"):
            with monkeypatch.context() as patch:
                patch.setattr(OpenAIClient, "models", lambda client, served=served: [served])
                keys.append(key(None, kind))
        assert keys == [key("one", kind), key("two", kind)]
        assert keys[0] != keys[1]


def test_a_server_and_a_table_of_users_as_settings(recipe, data, tmp_path):
    user = data.test[0].user_id
    (tmp_path / "people.csv").write_text(f"user_id,age\n{user},24\n", encoding="utf-8")
    config = ChatRecConfig(server={"url": SERVED["url"]}, users=tmp_path / "people.csv")
    inputs = RunInputs(data, "", recipe.model, None, 0)
    ranker = chat_rec_ranker(config, inputs, BaselineStage(inputs, "item-kNN"))
    assert isinstance(ranker.chat, EndpointChat)
    assert (ranker.profiles.lines(user, [])[0], ranker.domain) == ("age: 24", "movies")
