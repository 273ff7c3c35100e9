"""A run's default: the best in full ranking of validation rows, kept, and asked unless another is named."""

import html
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import prefrec
from fixed_rankers import ListsAlone
from prefrec.cli.export import export
from prefrec.data import read_prepared, seen_items
from prefrec.evaluation import metrics_for
from prefrec.evaluation.metrics import target_ranks
from prefrec.export.parts import ABOUT
from prefrec.pipeline import best as module
from prefrec.pipeline.best import best_on_validation
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.baselines import PopularityRanker, TitleTfidfRanker
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.recipe import Recipe
from prefrec.recommend.rules import ById
from prefrec.recommender import Recommender
from prefrec.runs.contents import read_run
from prefrec_server.bodies import ExplainRequest, RecommendRequest
from prefrec_server.page import side_by_side
from prefrec_server.server import open_engine
from sealed import seal_results


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of a slow model, a blend with it and one without it; to be read only."""
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": []}
    parts = ["title TF-IDF", "window co-occurrence"]
    raw["rankers"] = [{"kind": "blend", "parts": [*parts, "zero-shot"]}]
    raw["rankers"] += [{"kind": "blend", "name": "words", "parts": parts}]
    raw["evaluate"] |= {"rows": 8, "generate_rows": 0, "baselines": ["random", "title TF-IDF", "item only"]}
    folder = tmp_path_factory.mktemp("best") / "run"
    run_recipe(Recipe.model_validate(raw), folder)
    return folder


def full_ndcg(data, score, rows):
    """NDCG@10 of ranking all items that the user has not seen, row by row."""
    values = []
    for e, seen in zip(rows, seen_items(data, rows), strict=True):
        listed = tuple(i for i in data.catalogue.ids if i == e.target or i not in {*e.history, *seen})
        scores = score([replace(e, candidates=listed)])
        values.append(metrics_for([10])["ndcg@10"](*target_ranks(scores, [listed.index(e.target)])).item())
    return values


def test_the_default_is_measured_in_full_ranking_of_validation_rows(finished):
    found, data = read_run(finished).results.best, read_prepared(finished / "data")
    rows = data.examples("validation", module.ROWS)
    assert found.rows == dict.fromkeys(["title TF-IDF", "zero-shot", "blend", "words"], len(rows))
    own = full_ndcg(data, TitleTfidfRanker.fit(data.catalogue).score, rows)
    assert found.values["title TF-IDF"] == pytest.approx(np.mean(own))
    kept = [json.loads(p.read_text()) for p in (finished / "predictions/validation").glob("*.json")]
    assert len(kept) == 3


@pytest.fixture
def chosen(finished, tmp_path):
    """A function of changes to `evaluate` that chooses again among the entries of the finished run."""
    run = open_run(finished)

    def chosen(without=(), **evaluate):
        recipe = run.recipe.model_copy(update={"evaluate": run.recipe.evaluate.model_copy(update=evaluate)})
        entries = [run.stage(name) for name in run.plan.names]
        entries = [ListsAlone(e) if e.name in without else e for e in entries]
        return best_on_validation(recipe, run.data, entries, tmp_path, run.plan.inputs.baselines)

    return chosen


def test_a_slow_model_and_what_is_made_of_it_are_asked_about_fewer_rows(finished, monkeypatch, chosen):
    monkeypatch.setattr(module, "SLOW_ROWS", 5)
    found, run = chosen(), open_run(finished)
    rows = len(run.data.examples("validation", module.ROWS))
    assert found.rows == {"title TF-IDF": rows, "words": rows, "zero-shot": 5, "blend": 5}


def test_a_blend_counts_by_weights_of_other_users(finished):
    run = open_run(finished)
    entry, rows = run.stage("words"), run.data.examples("validation", None)
    assert entry.on("validation").key != entry.key
    out_of_fold, own = entry.on("validation").load(8), entry.load(8)
    assert not np.isclose(out_of_fold.score(rows), own.score(rows)).all(axis=1).any()
    assert run.results.best.values["words"] == pytest.approx(np.mean(full_ndcg(run.data, out_of_fold.score, rows)))


def test_full_rows_limit_the_sample_of_slow_models(chosen):
    assert chosen(full_rows=3).rows["zero-shot"] == 3
    none = chosen(full_rows=0)
    assert {*none.values} == {"title TF-IDF", "words"}
    assert none.unranked == dict.fromkeys(["zero-shot", "blend"], "evaluate.full_rows is 0")


def test_what_cannot_rank_the_whole_catalogue_is_no_default(chosen):
    found = chosen(without=["words", "blend"])
    assert {*found.values} == {"title TF-IDF", "zero-shot"}
    assert found.unranked == dict.fromkeys(["blend", "words"], "it does not rank the whole catalogue")
    assert chosen(without=["words", "blend", "zero-shot"], baselines=["random"]) is None


@pytest.mark.parametrize(("full_rows", "slow"), [(None, 5), (3, 3), (0, 0)])
def test_each_ranker_is_asked_about_its_validation_rows(recipe, data, tmp_path, monkeypatch, full_rows, slow):
    """Against a plain account of who is asked about which rows; ranks are those of a rule, so NDCG is known."""
    monkeypatch.setattr(module, "SLOW_ROWS", 5)
    asked, rows = [], data.examples("validation", module.ROWS)
    seen, positions = seen_items(data, rows), {e.user_id: n for n, e in enumerate(rows)}
    ranks = {"popularity": 3, "words": 1, "mixed": 2, "model": 4}

    def frame(name, examples):
        # Row 0 of all validation rows is a rank better; the frame is not in the order of its rows.
        own = [ranks[name] - (positions[e.user_id] == 0) or 20 for e in examples]
        return pl.DataFrame({"row": range(len(own)), "rank": own, "tied": [0] * len(own)}).reverse()

    def fit(split, names):
        asked.append(("fit", split, names))
        return [SimpleNamespace(name="popularity")]

    def rank(ranker, examples, catalogue, without, known):
        same = (examples, without, catalogue) == (rows, seen, data.catalogue)
        asked.append((ranker.name, same, known == {*data.known_interactions("validation")["item_id"]}))
        return frame(ranker.name, examples)

    def predict(given, section, group, examples, cache, *, seed, seen):
        assert (given is data, section.split, cache, seed) == (True, "validation", tmp_path, recipe.seed)
        assert section.generate_rows == 0
        assert seen == [everything[positions[e.user_id]] for e in examples]
        asked.extend((e.name, [e.user_id for e in examples]) for e in group)
        return [frame(e.name, examples) for e in group]

    everything = seen
    for name, fake in (("rank_catalogue", rank), ("predict_stages", predict)):
        monkeypatch.setattr(module, name, fake)

    def entry(name, is_slow=False, full=True):
        made = SimpleNamespace(name=name, is_slow=is_slow, on={"validation": SimpleNamespace(name=name)}.get)
        made.full = made if full else None
        return made

    needs = {"model": [], "words": ["popularity"], "mixed": ["model", "words"], "lists": []}
    evaluate = recipe.evaluate.model_copy(
        update={"full_rows": full_rows, "generate_rows": 7, "baselines": ["random", "popularity", "item only"]}
    )
    given = SimpleNamespace(needs=needs, evaluate=evaluate, seed=recipe.seed)
    entries = [entry("model", is_slow=True), entry("words"), entry("mixed"), entry("lists", full=False)]
    best = best_on_validation(given, data, entries, tmp_path, SimpleNamespace(before=fit))
    sample = [e.user_id for e in data.examples("validation", slow)] if slow else []
    everyone = [e.user_id for e in rows]
    want = [("fit", "validation", ["popularity"]), ("popularity", True, True)]
    want += [("words", everyone)] + ([("model", sample), ("mixed", sample)] if slow else [])
    assert asked == want
    unranked = {"lists": "it does not rank the whole catalogue"}
    unranked |= {} if slow else dict.fromkeys(["model", "mixed"], "evaluate.full_rows is 0")
    assert best.unranked == unranked
    compared = {"popularity": everyone, "words": everyone} | ({"model": sample, "mixed": sample} if slow else {})
    assert best.rows == {name: len(users) for name, users in compared.items()}
    for name, users in compared.items():
        own = [ranks[name] - (positions[user] == 0) or 20 for user in users]
        assert best.values[name] == pytest.approx(np.mean([1 / np.log2(r + 1) if r <= 10 else 0 for r in own]))


def test_slow_rankers_rank_no_more_than_full_rows(recipe):
    for full_rows, rows in ((None, 200), (201, 200), (200, 200), (199, 199), (0, 0)):
        evaluate = recipe.evaluate.model_copy(update={"full_rows": full_rows})
        assert module.slow_rows(SimpleNamespace(evaluate=evaluate)) == rows


def test_without_validation_examples_there_is_no_best(recipe, data, tmp_path):
    assert best_on_validation(recipe, replace(data, validation=[]), [], tmp_path, FittedBaselines(data, 0)) is None


def test_popularity_is_served_where_candidate_sets_neutralise_it(tmp_path):
    """Users take what is popular, and one item in five from a series that its title names."""
    rng, items = np.random.default_rng(0), 80
    series = rng.permutation(np.arange(items) % 20)
    popular = 1 / np.arange(1, items + 1)
    log = []
    for u in range(120):
        own = series == rng.integers(20)
        picked = rng.choice(items, 8, replace=False, p=0.8 * popular / popular.sum() + 0.2 * own / own.sum())
        log += [(f"u{u}", f"i{i}", 1000 * n + u) for n, i in enumerate(picked)]
    titles = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": [f"Series {s}" for s in series]})
    titles = titles.with_columns(title=pl.col("title") + " part " + pl.col("item_id"))
    recommender = prefrec.fit(
        pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row"),
        titles,
        {
            "data": {"candidates": {"kind": "targets", "size": 10}},
            "evaluate": {"zero_shot": False, "baselines": ["random", "popularity", "title TF-IDF"]},
        },
        out=tmp_path / "run",
    )
    data, words = recommender.data, TitleTfidfRanker.fit(recommender.data.catalogue)
    rows, popularity = data.examples("validation", None), PopularityRanker.fit(data.train_interactions)
    targets = [e.target_index for e in rows]
    on_lists = {
        r.name: metrics_for([10])["ndcg@10"](*target_ranks(r.score(rows), targets)).mean()
        for r in (words, popularity)
    }
    assert on_lists["title TF-IDF"] > on_lists["popularity"] + 0.03
    best = read_run(tmp_path / "run").results.best
    assert best.values["popularity"] > 1.5 * best.values["title TF-IDF"]
    assert recommender.stage.name == best.ranker == "popularity"
    engine = open_engine(open_run(tmp_path / "run"))  # the run has no language model
    try:
        assert engine.rankers[0] == "popularity"
        asked = engine.recommend(RecommendRequest(history=[ById(item_id="i5")], k=3))
        served = asked.answer(engine.submit(asked, 60).result(60))
        want = recommender.recommend(["i5"], 3)
        assert [line.item_id for line in served.ranking] == [line.item_id for line in want]
        asked = engine.explain(ExplainRequest(history=[ById(item_id="i5")], item=ById(item_id="i6")))
        why = asked.answer(engine.submit(asked, 60).result(60))
        assert (why.ranker, [i.effect for i in why.influences]) == ("popularity", [0.0])
    finally:
        engine.close()


def test_fit_serve_export_report_and_page_have_one_default(finished, tmp_path, capsys):
    run = open_run(finished)
    name = run.results.best.ranker
    assert name == max(run.results.best.leads, key=run.results.best.leads.get)
    assert json.loads((finished / "best.json").read_text())["ranker"] == name
    assert Recommender.from_run(finished).stage.name == run.default() == name
    assert run.default(["zero-shot"]) == "zero-shot"
    report = (finished / "report.html").read_text()
    assert f"{name} is best on validation, with" in report
    assert html.escape(run.results.best.sentence, quote=False) in report
    engine = open_engine(run)
    try:
        assert engine.rankers[0] == side_by_side(engine.rankers)[0] == name
    finally:
        engine.close()
    # No warning: only what is loaded.
    assert all(line.startswith("Loading ") for line in capsys.readouterr().err.splitlines())
    export(finished, out=tmp_path / "export")
    assert json.loads((tmp_path / "export" / ABOUT).read_text())["ranker"] == name


def test_it_is_served_first_and_explains(finished):
    run = open_run(finished)
    engine = open_engine(run)
    try:
        assert engine.rankers[0] == run.results.best.ranker
        assert {"zero-shot", "blend", "words", "title TF-IDF"} <= {*engine.rankers}
        first, second = run.data.catalogue.ids[:2]
        assert engine.explain(ExplainRequest(history=[first], item=second)).ranker == run.results.best.ranker
        assert engine.recommend(RecommendRequest(history=[first])).ranker == run.results.best.ranker
    finally:
        engine.close()


def test_a_run_without_a_valid_evaluation_says_so(finished, tmp_path, capsys):
    (finished / "best.json").rename(tmp_path / "best.json")
    try:
        assert open_run(finished).default() == "zero-shot"
    finally:
        (tmp_path / "best.json").rename(finished / "best.json")
    said = " ".join(capsys.readouterr().err.split())
    assert "using zero-shot, because the best ranker is not known: no validation examples compared" in said


def test_a_choice_on_candidate_sets_by_an_earlier_prefrec_does_not_count(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    old = json.loads((folder / "best.json").read_text())
    del old["leads"]
    (folder / "best.json").write_text(json.dumps(old))
    seal_results(folder)
    contents = read_run(folder)
    assert contents.results.best is None
    said = "an earlier prefrec chose it on candidate sets; `prefrec run` chooses by full ranking"
    assert f"best.json cannot be read: {said}" in contents.missing
