"""Blend in a recipe: weights from validation rows, a row of the table, and the whole catalogue."""

import json
from dataclasses import replace
from itertools import chain
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest

from fixed_rankers import Fixed, FixedStage
from prefrec.data import Query, RankingExample, read_prepared, seen_items
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import rank_catalogue
from prefrec.pipeline.checks import check_rows
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import predict_all, predict_full, predict_stages
from prefrec.rankers import blend as blends
from prefrec.rankers import ease, fitted_baselines
from prefrec.rankers.baselines import PopularityRanker, RandomRanker
from prefrec.rankers.blend import (
    BlendConfig,
    BlendRanker,
    RerankedBlend,
    Weights,
)
from prefrec.rankers.blend_learning import learn_weights
from prefrec.rankers.item_features import time_features
from prefrec.rankers.matrices import pad_scores
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.recipe import Recipe
from prefrec.recommender import Recommender
from prefrec.stages import blend, lazy
from prefrec.stages.baseline import BaselineStage, CountedBaselineStage
from prefrec.stages.blend import BlendParts, BlendStage, LearntItems
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import LMStage
from prefrec.stages.lazy import LazyRanker

PARTS = ["title TF-IDF", "window co-occurrence", "zero-shot"]


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """To be read only."""
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": []}
    raw["rankers"] = [{"kind": "blend", "parts": PARTS}, {"kind": "blend", "name": "words", "parts": PARTS[:1]}]
    raw["evaluate"] |= {"rows": 8, "generate_rows": 0}
    folder = tmp_path_factory.mktemp("blend") / "run"
    run_recipe(Recipe.model_validate(raw), folder)
    return folder


def test_weights_are_written_and_the_blend_is_in_both_tables(finished):
    weights = Weights.from_json(json.loads((finished / "rankers/blend/blend.json").read_text()))
    assert weights.logits[""].names == ("title TF-IDF", "window co-occurrence", "popularity")
    assert set(weights.logits) == {"", "title TF-IDF", "window co-occurrence", "item popularity"}
    assert weights.reranked.names == ("blend", "zero-shot")  # a title model reorders the best
    metrics = json.loads((finished / "metrics.json").read_text())
    for block in ("evaluation", "full_catalogue"):
        assert {"blend", "words"} <= metrics[block]["metrics"].keys()
    assert "blend: weights learnt on" in (finished / "report.html").read_text()


def test_the_table_says_what_each_part_adds(finished):
    full = json.loads((finished / "metrics.json").read_text())["full_catalogue"]
    added = {c["against"] for c in full["comparisons"] if c["ranker"] == "blend"} - {full["best_reference"]}
    assert added == {f"blend without {part}" for part in (*PARTS, "item popularity")}
    assert not any("without" in name for name in full["metrics"])
    assert not any("without" in name for group in full["groups"].values() for name in group["metrics"])


def _inputs(folder, recipe):
    return RunInputs(read_prepared(folder / "data"), "key", recipe.model, recipe.lora, 0, 4)


def test_a_title_model_is_asked_about_the_best_alone(finished, recipe):
    inputs = _inputs(finished, recipe)
    before = {n: BaselineStage(inputs, n) for n in PARTS[:2]}
    before["zero-shot"] = LMStage("zero-shot", None, inputs.data, recipe.model)
    ranker = BlendStage(inputs, BlendConfig(parts=PARTS), finished / "rankers/blend", before).load(4)
    assert isinstance(ranker, RerankedBlend)
    assert [model.name for model in ranker.models] == ["zero-shot"]
    assert np.isfinite(ranker.score(inputs.data.test[:3])).all()


@pytest.mark.parametrize("change", [{"templates": ["2"]}, {"layers": [0]}])
def test_another_base_or_template_of_a_title_model_makes_the_blend_again(finished, recipe, change):
    """The weights and the predictions are those of one model."""

    def key(model):
        inputs = replace(_inputs(finished, recipe), model=model)
        before = {"zero-shot": LMStage("zero-shot", None, inputs.data, model)}
        return BlendStage(inputs, BlendConfig(parts=["zero-shot", "popularity"]), finished, before).key

    assert key(recipe.model) == key(recipe.model.model_copy())
    assert key(recipe.model) != key(recipe.model.model_copy(update=change))


def test_a_blend_of_two_title_models_ranks_without_one_of_them(finished, recipe, tmp_path):
    inputs = _inputs(finished, recipe)

    class SlowStage(FixedStage):
        is_slow = True

        @property
        def full(self):
            return self

    again = SlowStage(RandomRanker(3, "again"))
    before = {"zero-shot": LMStage("zero-shot", None, inputs.data, recipe.model), "again": again}
    stage = BlendStage(inputs, BlendConfig(parts=["title TF-IDF", *before]), tmp_path, before)
    stage.make()
    rows = inputs.data.test[:2]
    weights = Weights.from_json(json.loads((tmp_path / "blend.json").read_text()))
    for excluded, kept in (("zero-shot", "again"), ("again", "zero-shot")):
        ranker = stage.without[excluded].load(4)
        assert (ranker.name, [model.name for model in ranker.models]) == (f"blend without {excluded}", [kept])
        assert ranker.logits == (weights.reranked_without[excluded],)
        assert np.isfinite(ranker.score(rows)).all()
    whole, out_of_fold, less = stage.load(4), stage.on("validation").load(4), stage.without["title TF-IDF"].load(4)
    for ranker, logits, inner in (
        (whole, (weights.reranked,), (weights.logits[""],)),
        (out_of_fold, weights.reranked_folds, weights.folds),
        (less, (weights.reranked,), (weights.logits["title TF-IDF"],)),
    ):
        assert [model.name for model in ranker.models] == ["zero-shot", "again"]
        assert (ranker.logits, ranker.blend.logits) == (logits, inner)


def test_a_title_model_that_has_nothing_to_learn_from_reorders_nothing(
    finished, recipe, tmp_path, monkeypatch, capsys
):
    """With few examples and many items, no target may be among the best."""
    monkeypatch.setattr("prefrec.rankers.blend.RERANKED", 1)
    monkeypatch.setattr("prefrec.stages.blend.RERANKED", 1)
    inputs = _inputs(finished, recipe)
    inputs = replace(inputs, data=replace(inputs.data, validation=inputs.data.validation[18:20]))
    noise = RandomRanker(3, "noise")
    before = {
        "noise": FixedStage(noise, full=noise),
        "zero-shot": LMStage("zero-shot", None, inputs.data, recipe.model),
    }
    stage = BlendStage(inputs, BlendConfig(parts=[*before]), tmp_path, before)
    stage.make()
    told = " ".join(capsys.readouterr().err.split())
    assert "blend: zero-shot will reorder nothing, because none of the 2 sampled validation targets is" in told
    assert isinstance(stage.load(4), BlendRanker)
    assert isinstance(stage.on("validation").load(4), BlendRanker)
    assert isinstance(stage.without["zero-shot"].load(4), BlendRanker)
    rec = Recommender(inputs.data, stage)
    history = inputs.data.test[0].history
    assert len(rec.recommend(history, 5)) == 5
    assert {*rec.explain(history, "i3")[0].parts} == {"noise", "item popularity"}


def test_two_blends_load_a_common_part_once_and_share_its_scores(finished, recipe, tmp_path):
    inputs, loads, asked = _inputs(finished, recipe), [], []

    class Counted(RandomRanker):
        def score(self, examples):
            asked.append(len(examples[0].candidates))
            return super().score(examples)

    class CountedStage(FixedStage):
        @property
        def full(self):
            return self

        def load(self, batch_size):
            loads.append(batch_size)
            return super().load(batch_size)

    before = {"counted": CountedStage(Counted(0, "counted")), "title TF-IDF": BaselineStage(inputs, "title TF-IDF")}
    configs = [BlendConfig(name=name, parts=[*before][: number + 1]) for number, name in enumerate(("one", "both"))]
    stages = [BlendStage(inputs, config, tmp_path / config.name, before) for config in configs]
    for stage in stages:
        (tmp_path / stage.name).mkdir()
        stage.make()
    assert len(loads) == len(asked) == 1  # both learn from the same examples
    rankers = [stage.load(4) for stage in stages]
    for ranker in rankers:
        ranker.use_predictions({})
        assert np.isfinite(ranker.score(inputs.data.test[:3])).all()
    assert len(loads) == 1
    assert len(asked) == 2


class Ordered(FixedStage):
    """A stage whose ranker scores an item by its number times a factor, for the whole catalogue too."""

    def __init__(self, name, factor):
        class ByNumber(Fixed):
            def score(self, examples):
                return pad_scores([[factor * int(c[1:]) for c in e.candidates] for e in examples])

        super().__init__(ByNumber(name, ""))
        self.factor = factor

    @property
    def full(self):
        return self


class Crossing(Ordered):
    """Its ranker for validation examples orders the items the other way round."""

    has_out_of_fold = True

    def load_out_of_fold(self, batch_size):
        return Ordered(self.name, -self.factor).ranker


class SometimesSlow(FixedStage):
    is_slow = False


@pytest.mark.parametrize("is_slow", [True, False])
@pytest.mark.parametrize("template", ["1", "history"])
def test_a_slow_part_is_asked_about_lists_unless_its_prompt_shows_them(finished, recipe, template, is_slow):
    """A slow part whose prompt shows no candidates scores lists; all other parts score the whole catalogue."""
    model = recipe.model.model_copy(update={"templates": [template]})
    inputs = RunInputs(read_prepared(finished / "data"), "key", model, recipe.lora, 0, 4)
    learnt = sorted(set(inputs.data.train_interactions["item_id"]))
    rows = [replace(inputs.data.test[0], candidates=tuple(learnt[1:3]))]
    of_lists, of_all = Ordered("lm", 1.0).ranker, Ordered("lm", 3.0).ranker
    stage = SometimesSlow(of_lists, full=of_all)
    stage.is_slow = is_slow
    (ranker,) = [*chain(*BlendParts(inputs, [stage]).rankers("test", 4))]
    want = of_lists if is_slow and template == "history" else of_all
    assert ranker.score(rows).tolist() == want.score(rows).tolist()


def test_weights_are_learnt_on_sampled_candidates_of_some_rows(finished, recipe, tmp_path, monkeypatch, capsys):
    learnt = []

    def learn(parts, times, examples, *, select, past):
        learnt.append(([part.name for part in parts], examples, select))
        counted = PopularityRanker.fit(data.train_interactions)  # without validation targets
        np.testing.assert_array_equal(parts[0].score(examples), counted.score(examples))
        np.testing.assert_array_equal(times(examples), blend.split_features(data, "validation")(examples))
        return learn_weights(parts, times, examples, select=select, past=past)

    monkeypatch.setattr(blend, "MOST_CANDIDATES", 8)
    monkeypatch.setattr(blend, "learn_weights", learn)
    config, data = BlendConfig(parts=["popularity", "title TF-IDF"], rows=6), read_prepared(finished / "data")
    for seed in (0, 0, 1):
        inputs = replace(_inputs(finished, recipe), seed=seed)
        before = {name: BaselineStage(inputs, name) for name in config.parts}
        BlendStage(inputs, config, tmp_path, before).make()
    assert learnt[0] == learnt[1] != learnt[2]
    names, examples, select = learnt[0]
    assert (names, select) == (config.parts, False)
    rows = data.examples("validation", 6)
    assert [(e.user_id, e.history, e.target) for e in examples] == [(e.user_id, e.history, e.target) for e in rows]
    for e, seen in zip(examples, seen_items(data, rows), strict=True):
        assert e.candidates[0] == e.target
        assert not {*e.candidates[1:]} & {*seen, e.target}
    assert len({c for e in examples for c in e.candidates[1:]}) <= 8
    assert 4 < np.mean([len(e.candidates) for e in examples]) <= 9
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("blend: 3 weights learnt on 6 validation examples") == 3  # the report has the weights


def test_a_blend_without_a_part_counts_no_validation_targets_for_validation_rows(finished, recipe, tmp_path):
    inputs = _inputs(finished, recipe)
    parts = ["popularity", "window co-occurrence"]
    made = BlendStage(inputs, BlendConfig(parts=parts), tmp_path, {n: BaselineStage(inputs, n) for n in parts})
    made.make()
    weights, rows = Weights.from_json(json.loads((tmp_path / "blend.json").read_text())), inputs.data.validation
    for excluded in (*parts, "item popularity"):
        less = made.without[excluded]
        for split, loaded in (("validation", less.on("validation").load(4)), ("test", less.load(4))):
            fast, _ = made.parts.rankers(split, 4)
            twin = BlendRanker("twin", fast, made.parts.times(split), weights, excluded)
            assert loaded.name == f"blend without {excluded}"
            assert np.array_equal(loaded.score(rows), twin.score(rows))
    assert not np.allclose(less.on("validation").load(4).score(rows), less.load(4).score(rows))


def test_blends_share_the_features_of_a_block_in_an_evaluation_alone(finished, recipe, tmp_path, monkeypatch):
    inputs = _inputs(finished, recipe)
    parts = ["popularity", "window co-occurrence"]
    made = BlendStage(inputs, BlendConfig(parts=parts), tmp_path, {n: BaselineStage(inputs, n) for n in parts})
    made.make()
    inputs.forget(rankers=True)
    rows, scaled = list(inputs.data.validation), Mock(wraps=blends.scaled)
    monkeypatch.setattr(blends, "scaled", scaled)
    blocks = [rows[:3], rows[3:], [replace(e, time=5 * 10**8) for e in rows[3:]], rows[3:]]

    def scores():
        stages = [made, *made.without.values()]
        rankers = [stage.load(4) for stage in stages]
        yield from ([ranker.score(block) for ranker in rankers] for block in blocks)
        for ranker in rankers:
            ranker.use_predictions({})
        yield from ([ranker.score(block) for ranker in rankers] for block in blocks)

    counts, found = [], []
    for number, answers in enumerate(scores()):
        found.append(answers)
        counts.append(scaled.call_count)
        for answer, alone in zip(answers, found[number % len(blocks)], strict=True):
            assert np.allclose(answer, alone, atol=1e-5)  # a part's scores are kept in float32
    # The blend has two parts, two blends have one of them, and others leave item features out.
    asked = 2 * (2 + len(made.without) - 2) + 2 - 2
    assert np.diff([0, *counts]).tolist() == [asked] * 4 + [2] * 4
    made.forget()


def test_known_predictions_answer_in_place_of_a_part_that_is_not_loaded():
    class Unloaded(FixedStage):
        def load(self, batch_size):
            raise DataError("it is asked")

    late = LazyRanker(Unloaded(Fixed("lm", "")), 4)
    rows = [RankingExample("u", ("x",), ("a", "b", "c"), "a"), RankingExample("v", (), ("b", "d"), "d")]
    answers = {"candidates": [["c", "a", "b"], ["d", "b"]], "scores": [[3.0, 1.0, 2.0], [4.0, 5.0]]}
    late.use_predictions({"another": pl.DataFrame(answers).reverse(), "lm": pl.DataFrame(answers)})
    assert late.score(rows).tolist() == [[1.0, 2.0, 3.0], [5.0, 4.0, -np.inf]]
    some = replace(rows[0], candidates=("b", "a"))
    assert late.score([some, rows[1]]).tolist() == [[2.0, 1.0], [5.0, 4.0]]
    for others in (rows[:1], rows[::-1], [*rows, rows[0]], [rows[0], replace(rows[1], candidates=("b", "e"))]):
        with pytest.raises(DataError, match="it is asked"):
            late.score(others)
    late.use_predictions({"another": pl.DataFrame(answers)})
    with pytest.raises(DataError, match="it is asked"):
        late.score(rows)


def test_scores_are_kept_for_an_evaluation_alone_and_within_bounds(monkeypatch):
    asked = []

    class Counted(Fixed):
        def score(self, examples):
            asked.append([(e.user_id, e.time) for e in examples])
            return super().score(examples) + len(asked) / 3

    late = LazyRanker(FixedStage(Counted("lm", "abc")), 4)
    first = [RankingExample(user, (), ("a", "b", "c"), "a") for user in "uv"]
    second, later = [replace(first[0], user_id="w")], [replace(e, time=5) for e in first]
    for _ in range(2):
        late.score(first)
    assert len(asked) == 2
    late.use_predictions({})
    scores = [late.score(rows) for rows in (first, second, later, first, second, later)]
    assert asked[2:] == [[(e.user_id, e.time) for e in rows] for rows in (first, second, later)]
    for one, again in zip(scores[:3], scores[3:], strict=True):
        assert np.array_equal(one, again)
        assert one.dtype == np.float64
    late.use_predictions({})  # for the next evaluation they stay
    late.score(second)
    assert len(asked) == 5
    monkeypatch.setattr(lazy, "MOST_KEPT", 14)  # 15 are kept
    late.score([*second, *first])
    late.score(second)
    assert len(asked) == 7


@pytest.mark.parametrize("rows_per_block", [1, 3, 1000])
def test_blends_that_share_parts_query_them_once_for_each_block(
    finished, recipe, tmp_path, monkeypatch, rows_per_block
):
    """The predictions equal those of whole blends, which score all examples one after the other."""
    inputs = _inputs(finished, recipe)
    data, parts = inputs.data, ["title TF-IDF", "window co-occurrence", "popularity"]
    before = {name: BaselineStage(inputs, name) for name in parts}
    stage = BlendStage(inputs, BlendConfig(parts=parts), tmp_path / "blend", before)
    stage.folder.mkdir()
    stage.make()
    rows = data.examples("test", None)
    seen = seen_items(data, rows)
    known = set(data.known_interactions("test")["item_id"])
    stages = [stage, *stage.ablations]
    apart = []
    for one in stages:
        ranker = one.load(4)
        ranker.use_predictions({})
        apart.append(rank_catalogue(ranker, rows, data.catalogue, seen, known))
    stage.forget()
    inputs.forget(rankers=True)
    per_example = 4 * len(data.catalogue)
    monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", rows_per_block * per_example)
    monkeypatch.setattr(lazy, "MOST_KEPT", 1)
    asked = []
    whole = WindowCooccurrenceRanker.score

    def count(self, examples):
        asked.append(len(examples))
        return whole(self, examples)

    monkeypatch.setattr(WindowCooccurrenceRanker, "score", count)
    together = predict_stages(data, recipe.evaluate, stages, rows, tmp_path / "cache", seed=0, seen=seen)
    assert sum(asked) == len(rows)
    assert max(asked) <= rows_per_block
    for one, other in zip(together, apart, strict=True):
        ranks = ["ranker", "row", "target", "candidates", "rank", "tied", "listed", "class_rank"]
        assert one.select(ranks).equals(other.select(ranks))
        np.testing.assert_allclose(one["scores"].explode(), other["scores"].explode(), rtol=1e-5)


def test_a_part_that_ranks_lists_alone_is_refused(finished, recipe):
    inputs = _inputs(finished, recipe)
    before = {"popularity": BaselineStage(inputs, "popularity"), "lists": FixedStage(RandomRanker(0, "lists"))}
    with pytest.raises(ConfigError, match=r"rankers\.blend\.parts: a blend needs full ranking, which lists"):
        BlendStage(inputs, BlendConfig(parts=["popularity", "lists"]), finished / "x", before)


def test_data_without_validation_rows_are_refused(finished, recipe):
    data = replace(read_prepared(finished / "data"), validation=[])
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": [{"kind": "blend"}]}
    with pytest.raises(ConfigError, match=r"rankers\.blend: a blend learns its weights on validation examples"):
        check_rows(Recipe.model_validate(raw), data)


def test_validation_targets_count_for_test_rows_alone(finished, recipe):
    inputs = _inputs(finished, recipe)
    data, parts = inputs.data, BlendParts(inputs, [CountedBaselineStage(inputs, "popularity")])
    for rows, split in ((data.validation, "validation"), (data.test, "test")):
        expected = PopularityRanker.fit(data.known_interactions(split))
        (ranker,), _ = parts.rankers(split, 4)
        assert np.array_equal(ranker.score(rows), expected.score(rows))
        features = parts.times(split)
        assert features.names == ["popularity"]
        whole = dict(data.known_interactions(split).group_by("item_id").len().iter_rows())
        counts = [[np.log1p(whole.get(c, 0)) for c in e.candidates] for e in rows]
        np.testing.assert_allclose(features(rows)[..., 0], counts, rtol=1e-6)


def test_a_block_with_a_validation_target_is_answered_as_its_rows_alone(finished, recipe):
    """Neither users nor targets are read."""
    inputs = _inputs(finished, recipe)
    before = {n: BaselineStage(inputs, n) for n in (*PARTS[:2], "popularity")}
    config, held = BlendConfig(parts=[*PARTS[:2], "popularity"]), inputs.data.validation[0]
    made = BlendStage(inputs, config, finished.parent / "counts", before)
    made.make()
    first = tuple(i for i in inputs.data.catalogue.ids if i != held.target)
    rows = [
        RankingExample(user, (history,), (held.target, *first), held.target)
        for user, history in ((held.user_id, "i3"), ("0", "i7"), ("-", "i3"))
    ]
    together = made.load(4).score(rows)
    for row, scores in zip(rows, together, strict=True):
        np.testing.assert_allclose(made.load(4).score([row])[0], scores, rtol=1e-6)
    assert np.array_equal(together[0], together[2])  # the user's name is not read


def test_an_evaluation_on_validation_examples_counts_no_targets(finished, recipe, tmp_path):
    run = open_run(finished)
    entry, evaluate = run.stage("words"), {"split": "validation", "baselines": [], "rows": None, "generate_rows": 0}
    section = recipe.evaluate.model_copy(update=evaluate)
    for predict, split in ((predict_all, "lists"), (predict_full, "full")):
        found = predict(run.data, section, [], [entry], tmp_path / split, seed=0).sort("row")
        rows = [
            replace(e, candidates=tuple(c)) for e, c in zip(run.data.validation, found["candidates"], strict=True)
        ]
        out_of_fold, own = (e.load(8).score(rows) for e in (entry.on("validation"), entry))
        for scores, want in zip(found["scores"], out_of_fold, strict=True):
            np.testing.assert_allclose(scores, want[: len(scores)], rtol=1e-5)
        assert not np.allclose(out_of_fold, own)


@pytest.mark.parametrize("start", [0, 1_700_000_000])
def test_item_features_of_a_split_have_ages_in_a_log_with_dates(finished, start):
    data = read_prepared(finished / "data")
    later = data.train_interactions.with_columns(pl.col("timestamp") + start)
    names = blend.split_features(replace(data, train_interactions=later), "validation").names
    assert names == [*time_features(start > 0)]
    assert ("−log age" in names) == (start > 0)


def test_a_language_model_is_shared_by_both_splits_and_counts_are_not(finished, recipe):
    inputs = _inputs(finished, recipe)
    entries = [
        LMStage("zero-shot", None, inputs.data, recipe.model),
        CountedBaselineStage(inputs, "popularity"),
    ]
    parts = BlendParts(inputs, entries)
    (counts, models), (other_counts, other_models) = (parts.rankers(split, 4) for split in ("test", "validation"))
    assert models[0] is other_models[0]
    assert counts[0] is not other_counts[0]


def test_sampled_candidates_hold_the_target_and_nothing_seen(finished):
    data = read_prepared(finished / "data")
    rows = blend.sampled(data, data.validation, 30, np.random.default_rng(0))
    learnt = set(data.train_interactions.select("user_id", "item_id").iter_rows())
    for e in rows:
        assert e.candidates[0] == e.target
        assert len(set(e.candidates)) == len(e.candidates) <= 31
        assert not {(e.user_id, i) for i in e.candidates} & learnt


def test_items_that_were_not_learnt_get_the_median(finished):
    data = read_prepared(finished / "data")
    rows = [replace(e, candidates=("i01", "new", "i02", "i03", "newer")) for e in data.test[:2]]
    rows.append(replace(rows[0], candidates=("new",)))
    scores = np.array([[1.0, -9.0, 3.0, 8.0, -9.0], [5.0, 9.0, 4.0, 6.0, 9.0], [2.0, *[-np.inf] * 4]])
    late = LazyRanker(FixedStage(RandomRanker(0, "lm")), 4)
    late.score = lambda examples: scores
    found = LearntItems(late, {"i01", "i02", "i03"}).score(rows)
    assert found[:2].tolist() == [[1, 3, 3, 8, 3], [5, 5, 4, 6, 5]]
    assert np.isneginf(found[2, 1:]).all()
    assert found[2, 0] == 0  # nothing in the row was learnt


def test_no_answer_is_that_to_another_history(finished):
    """Queries without a user have the same candidates."""
    data = read_prepared(finished / "data")

    class ByHistory:
        name = "lm"

        def score(self, queries):
            return np.array([[float(c in q.history) for c in q.candidates] for q in queries])

    listed = tuple(data.catalogue.ids[:6])
    one, other = (Query((item,), listed) for item in listed[1:3])
    late = LazyRanker(FixedStage(ByHistory()), 4)
    for begin in (lambda: None, lambda: late.use_predictions({})):
        begin()
        assert [late.score([e]).argmax() for e in (one, other)] == [1, 2]


def test_a_part_that_the_log_does_not_allow_is_left_out_and_told(finished, recipe, tmp_path, monkeypatch, capsys):
    inputs = _inputs(finished, recipe)
    before = {name: BaselineStage(inputs, name) for name in ("EASE", "popularity", "newest first")}

    def entry(*parts):
        return BlendStage(inputs, BlendConfig(parts=parts), tmp_path, before)

    assert entry("popularity", "EASE").without.keys() == {"popularity", "EASE", "item popularity"}
    monkeypatch.setattr(ease, "MOST_BYTES", 0)
    smaller = entry("popularity", "EASE", "newest first")
    assert smaller.without.keys() == {"popularity", "item popularity"}
    smaller.make()
    told = " ".join("".join(capsys.readouterr()).split())
    assert "blend: EASE is left out: it inverts a matrix of" in told
    assert "blend: newest first is left out: it needs dates, but the times of the log are counters" in told
    assert np.isfinite(smaller.load(4).score(inputs.data.test[:2])).all()
    with pytest.raises(ConfigError, match=r"rankers\.blend\.parts: the data have none of these .* EASE inverts"):
        entry("EASE")
    with pytest.raises(ConfigError, match=r"EASE inverts a matrix .*: name another ranker"):
        before["EASE"].load(4)


def test_the_log_before_test_examples_decides_which_parts_a_blend_can_have(finished, recipe, tmp_path, monkeypatch):
    data = read_prepared(finished / "data")
    is_new = pl.col("item_id") == data.validation[0].target
    data = replace(data, train_interactions=data.train_interactions.filter(~is_new))
    inputs = RunInputs(data, "key", recipe.model, recipe.lora, 0, 4)
    before = {name: BaselineStage(inputs, name) for name in ("EASE", "popularity")}
    few = data.train_interactions["item_id"].n_unique()
    monkeypatch.setattr(ease, "MOST_BYTES", ease.matrix_bytes(few))
    made = BlendStage(inputs, BlendConfig(parts=[*before]), tmp_path, before)
    assert made.parts.names == ["popularity"]


def test_a_selected_blend_has_another_key_and_shows_what_its_parts_add(finished, recipe, tmp_path):
    inputs = _inputs(finished, recipe)
    parts = ["window co-occurrence", "random", "title TF-IDF"]
    before = {name: BaselineStage(inputs, name) for name in parts}
    whole, selected = (
        BlendStage(inputs, BlendConfig(parts=parts, select=select), tmp_path / str(select), before)
        for select in (False, True)
    )
    assert whole.key != selected.key
    for entry in (whole, selected):
        entry.make()
    left_out = Weights.from_json(json.loads((tmp_path / "True/blend.json").read_text())).left_out
    assert "random" in left_out
    assert [e.name for e in whole.ablations] == [f"blend without {part}" for part in (*parts, "item popularity")]
    kept = [part for part in (*parts, "item popularity") if part not in left_out]
    assert [e.name for e in selected.ablations] == [f"blend without {part}" for part in kept if len(kept) > 1]
    rows = inputs.data.test[:3]
    without = selected.without["random"].load(4)
    assert np.array_equal(without.score(rows), selected.load(4).score(rows))


def test_a_blend_with_one_part_left_is_not_compared_with_nothing(finished, recipe, tmp_path, monkeypatch):
    """The blend without its only part has no scores; the evaluation of such a run once failed."""
    inputs = _inputs(finished, recipe)
    parts = ["title TF-IDF", "random"]
    made = BlendStage(
        inputs, BlendConfig(parts=parts), tmp_path, {name: BaselineStage(inputs, name) for name in parts}
    )
    made.make()
    weights = made._weights()
    assert len(made.ablations) == 3
    left_out = dict.fromkeys([*made.without][1:], (0.0, 0.0))
    monkeypatch.setattr(made, "_weights", lambda: replace(weights, left_out=left_out))
    assert made.ablations == []


def test_a_baseline_is_fitted_once_for_all_blends_of_a_log(finished, recipe, monkeypatch):
    own, fitted = _inputs(finished, recipe), []
    baseline_rankers = fitted_baselines.baseline_rankers

    def counted(log, catalogue, seed, names, *more):
        fitted.append((*names, len(log)))
        return baseline_rankers(log, catalogue, seed, names, *more)

    monkeypatch.setattr(fitted_baselines, "baseline_rankers", counted)
    for name in ("one", "two"):
        stage = BlendStage(own, BlendConfig(name=name, parts=["popularity"]), finished / "rankers/words", {})
        for split in ("validation", "test"):
            for ranker in stage.parts.rankers(split, 4)[0]:
                ranker.score(own.data.test[:2])
    assert fitted == [("popularity", len(own.data.known_interactions(split))) for split in ("validation", "test")]
