"""A run's best ranker: measured on validation rows alone, kept, and asked unless another is named."""

import json

import numpy as np
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation import metrics_for
from prefrec.evaluation.metrics import target_ranks
from prefrec.pipeline import best as module
from prefrec.pipeline.best import best_on_validation
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.baselines import TitleTfidfRanker
from prefrec.recommender import Recommender
from prefrec.runs.contents import read_run
from prefrec_server.bodies import ExplainRequest, RecommendRequest
from prefrec_server.server import open_engine


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of a slow model, a blend with it and one without it; to be read only."""
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": []}
    parts = ["title TF-IDF", "window co-occurrence"]
    raw["rankers"] = [{"kind": "blend", "parts": [*parts, "zero-shot"]}]
    raw["rankers"] += [{"kind": "blend", "name": "words", "parts": parts}]
    raw["evaluate"] |= {"rows": 8, "generate_rows": 0, "references": ["random", "title TF-IDF", "item only"]}
    folder = tmp_path_factory.mktemp("best") / "run"
    run_recipe(Recipe.model_validate(raw), folder)
    return folder


def test_rankers_are_measured_on_the_validation_lists(finished):
    found, data = read_run(finished).best, read_prepared(finished / "data")
    rows = data.some("validation", module.ROWS)
    assert found.rows == dict.fromkeys(["title TF-IDF", "zero-shot", "blend", "words"], len(rows))
    ranker = TitleTfidfRanker.fit(data.catalogue)
    ranks = target_ranks(ranker.score(rows), [e.target_index for e in rows])
    assert found.values["title TF-IDF"] == pytest.approx(metrics_for([10])["ndcg@10"](*ranks).mean())
    kept = [json.loads(p.read_text()) for p in (finished / "predictions/validation").glob("*.json")]
    assert len(kept) == 3


def test_a_slow_model_and_what_is_made_of_it_are_asked_about_fewer_rows(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SLOW_ROWS", 5)
    run = open_run(finished)
    entries = [run.entry(name) for name in run.plan.names]
    found = best_on_validation(run.recipe, run.data, entries, tmp_path)
    rows = len(run.data.some("validation", module.ROWS))
    assert found.rows == {"title TF-IDF": rows, "words": rows, "zero-shot": 5, "blend": 5}


def test_a_blend_counts_by_weights_of_other_users(finished):
    run = open_run(finished)
    entry, rows = run.entry("words"), run.data.some("validation", None)
    assert entry.on_validation.key != entry.key
    crossed, own = entry.on_validation.load(8).score(rows), entry.load(8).score(rows)
    assert not np.isclose(crossed, own).all(axis=1).any()
    ranks = target_ranks(crossed, [e.target_index for e in rows])
    assert run.best.values["words"] == pytest.approx(metrics_for([10])["ndcg@10"](*ranks).mean())


def test_the_best_answers(finished, capsys):
    run = open_run(finished)
    assert run.best.ranker == max(run.best.values, key=run.best.values.get)
    assert Recommender.from_run(finished).entry.name == run.default() == run.best.ranker
    assert run.default(["zero-shot"]) == "zero-shot"
    assert capsys.readouterr().err == ""
    assert f"{run.best.ranker} is best on validation, with" in (finished / "report.html").read_text()


def test_it_is_served_first_and_a_language_model_explains(finished):
    run = open_run(finished)
    engine = open_engine(run)
    try:
        assert engine.rankers[0] == run.best.ranker
        assert {"zero-shot", "blend", "words", "title TF-IDF"} <= {*engine.rankers}
        first, second = run.data.catalogue.ids[:2]
        assert engine.explain(ExplainRequest(history=[first], target=second)).ranker == "zero-shot"
        assert engine.recommend(RecommendRequest(history=[first])).ranker == run.best.ranker
    finally:
        engine.close()


def test_a_run_without_a_valid_evaluation_says_so(finished, tmp_path, capsys):
    (finished / "best.json").rename(tmp_path / "best.json")
    try:
        assert open_run(finished).default() == "zero-shot"
    finally:
        (tmp_path / "best.json").rename(finished / "best.json")
    said = " ".join(capsys.readouterr().err.split())
    assert "using zero-shot, because the best ranker is not known: the run was not evaluated" in said
