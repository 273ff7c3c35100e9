"""Which rankers are asked again, and what the numbers are made of."""

import json
from dataclasses import replace
from unittest import mock

import polars as pl
import pytest

from prefrec import files
from prefrec.pipeline import score
from prefrec.pipeline.measure import evaluate_rankers
from prefrec.rankers.lm import LMRanker
from prefrec.recipe import dump_recipe
from prefrec.runs.stage import stage_key
from prefrec.sections import EvaluateSection, ModelSection
from prefrec.stages.inputs import RunInputs, adapter_key, model_key
from prefrec.stages.language_model import LMStage


@pytest.fixture
def evaluate(recipe, data, tmp_path):
    def run(entries, *, seed=0, on=data, **changes):
        section = EvaluateSection.model_validate(recipe.evaluate.model_dump() | {"full_rows": 0} | changes)
        return evaluate_rankers(on, section, entries, tmp_path / "cache", seed=seed)

    return run


@pytest.fixture
def asked(monkeypatch):
    """Names of the language-model rankers that were asked, not read from the cache."""
    names, predict = [], score.predict

    def count(ranker, *args, **given):
        if isinstance(ranker, LMRanker):
            names.append(ranker.name)
        return predict(ranker, *args, **given)

    monkeypatch.setattr(score, "predict", count)
    return names


def killed(*_):
    raise KeyboardInterrupt


def test_generation_is_counted_on_its_own_rows(evaluate, entries):
    scores = evaluate(entries, generate_rows=4)
    assert (scores.generation.rankers, scores.generation.n) == (["zero-shot", "sft"], 4)
    own, theirs = ["gen_hr@1", "valid_ratio"], ["substring_hr@1", "substring_valid_ratio"]
    assert list(scores.generation.metrics["sft"]) == own + theirs
    assert not {*own, *theirs} & set(scores.evaluation.metrics["sft"])
    generated = scores.predictions.filter(pl.col("generated").is_not_null())
    assert sorted(generated["row"].unique().to_list()) == [0, 1, 2, 3]
    valid = generated.filter(pl.col("ranker") == "sft")["choice"].is_not_null().mean()
    assert scores.generation.metrics["sft"]["valid_ratio"].mean == pytest.approx(valid)
    assert [(c.ranker, c.against) for c in scores.generation.comparisons] == [("sft", "zero-shot")] * 2


def test_texts_are_asked_of_rows_spread_over_the_users(evaluate, entries, data):
    """Two users with ten rows each stand first: four texts come from four users, and old answers to others go."""
    many = [replace(e, user_id=data.test[i // 10].user_id) for i, e in enumerate(data.test[:20])]
    scores = evaluate(entries[:1], rows=None, generate_rows=4, on=replace(data, test=[*many, *data.test[20:]]))
    texts = scores.predictions.filter(pl.col("generated").is_not_null())
    assert texts["user_id"].n_unique() == len(texts) == scores.generation.n == 4
    assert texts["row"].to_list() != [0, 1, 2, 3]


def test_known_predictions_are_not_made_again(evaluate, entries, asked):
    first = evaluate(entries)
    assert asked == ["zero-shot", "sft"]
    again = evaluate(entries)
    evaluate(entries, batch_size=3, ks=[2], baselines=["random"])
    assert (asked, again.evaluation) == (["zero-shot", "sft"], first.evaluation)
    assert again.predictions.equals(first.predictions)


@pytest.mark.parametrize("change", [{"split": "validation"}, {"generate_rows": 2}])
def test_other_rows_are_asked_again(evaluate, entries, asked, change):
    evaluate(entries[:1])
    evaluate(entries[:1], **change)
    assert asked == ["zero-shot"] * 2


@pytest.mark.parametrize("file", ["zero-shot.parquet", "zero-shot.json"])
def test_damaged_predictions_are_made_again(evaluate, entries, asked, tmp_path, capsys, file):
    before, path = evaluate(entries[:1]), tmp_path / "cache" / file
    path.write_bytes(path.read_bytes()[:-9])
    assert evaluate(entries[:1]).predictions.equals(before.predictions)
    told = "zero-shot.parquet is damaged and will be computed again" in capsys.readouterr().err
    assert (told, asked) == (file == "zero-shot.parquet", ["zero-shot"] * 2)


def test_a_key_never_stands_beside_the_answers_to_another(evaluate, entries, asked):
    evaluate(entries[:1])
    with mock.patch.object(files, "write_json", killed), pytest.raises(KeyboardInterrupt):
        evaluate(entries[:1], seed=1, rows=10)
    assert (asked, evaluate(entries[:1]).evaluation.n) == (["zero-shot"] * 3, 20)


def test_a_failure_in_generation_loses_no_scores(evaluate, entries, asked):
    want = evaluate(entries[1:], seed=1)
    asked.clear()
    with mock.patch.object(LMRanker, "generate", killed), pytest.raises(KeyboardInterrupt):
        evaluate(entries[1:])
    evaluate(entries[1:], generate_rows=0)
    again = evaluate(entries[1:])
    assert asked == ["sft"]
    evaluate(entries[1:], seed=1)
    assert again.generation.n == 4
    assert evaluate(entries[1:], seed=1).predictions.equals(want.predictions)


def test_keys_know_titles_domain_and_files(adapter, data, recipe, tmp_path):
    renamed = type(data.catalogue)(data.catalogue.frame.with_columns(title=pl.col("title") + "!"))
    others = [type(data)(renamed, [], [], [], data.train_interactions, data.protocol)]
    others.append(type(data)(data.catalogue, [], [], [], data.train_interactions, {"domain": "books"}))
    assert len({adapter_key(None, data), adapter_key(adapter, data), *(adapter_key(None, o) for o in others)}) == 4
    assert len(model_key(recipe.model, "movies")["name"]) == 64


def test_keys_know_how_items_are_shown(adapter, data, recipe):
    def entries(catalogue, **changes):
        model, some = recipe.model.model_copy(update=changes), replace(data, catalogue=catalogue)
        inputs = RunInputs(some, "data", model, None, 0).stage_inputs()
        return [LMStage("lm", adapter, some, model, i) for i in (None, inputs)]

    def keys(*args, **changes):
        return [(e.key, e.full.key, stage_key(model=e.model)) for e in entries(*args, **changes)]

    catalogue = type(data.catalogue)(data.catalogue.frame.with_columns(year=1990, brand=pl.lit("x")))
    plain, shown = keys(data.catalogue), keys(catalogue, item_text="{{ title }} ({{ year }})")
    assert "item_text" not in json.dumps([e.model for e in entries(catalogue)]) + dump_recipe(recipe)
    assert keys(catalogue) == plain  # `data` is part of the keys of stages
    assert all(a != b for a, b in zip(plain, shown, strict=True))
    later = type(catalogue)(catalogue.frame.with_columns(year=1991))
    assert keys(later, item_text="{{ title }} ({{ year }})")[0] != shown[0]
    other = type(catalogue)(catalogue.frame.with_columns(brand=pl.lit("y")))
    assert keys(other, item_text="{{ title }} ({{ year }})") == shown


def test_the_key_of_a_model_changes_with_what_matters():
    def key(bits, how):
        return stage_key(model=model_key(ModelSection(attn_implementation=how, quantization=bits), "movies"))

    ways = ("auto", "sdpa", "eager", "flex_attention")
    (plain,), (nf4,) = ({key(bits, how) for how in ways} for bits in ("none", "nf4"))
    assert plain != nf4
