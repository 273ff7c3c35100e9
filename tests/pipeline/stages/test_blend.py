"""Blend in a recipe: weights from validation rows, a row of the table, and the whole catalogue."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fixed_rankers import FixedStage
from prefrec.data import RankingExample, read_prepared
from prefrec.errors import ConfigError
from prefrec.pipeline import inputs as inputs_module
from prefrec.pipeline.checks import check_rows
from prefrec.pipeline.inputs import RunInputs
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import predict_all, predict_full
from prefrec.pipeline.stages import blend
from prefrec.pipeline.stages.baseline import BaselineStage, CountedBaselineStage
from prefrec.pipeline.stages.blend import BlendParts, BlendStage, LazyRanker, LearntItems
from prefrec.pipeline.stages.language_model import LMStage
from prefrec.rankers import baselines
from prefrec.rankers.baselines import PopularityRanker, RandomRanker
from prefrec.rankers.blend import BlendConfig, RerankedBlend, Weights

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
    assert set(weights.logits) == {"", "title TF-IDF", "window co-occurrence", "time"}
    assert weights.reranked.names == ("blend", "zero-shot")  # a title model reorders the best
    metrics = json.loads((finished / "metrics.json").read_text())
    for block in ("evaluation", "full_catalogue"):
        assert {"blend", "words"} <= metrics[block]["metrics"].keys()
    assert "blend: weights learnt on" in (finished / "report.html").read_text()


def test_the_table_says_what_each_part_adds(finished):
    full = json.loads((finished / "metrics.json").read_text())["full_catalogue"]
    added = {c["against"] for c in full["comparisons"] if c["ranker"] == "blend"} - {full["best_reference"]}
    assert added == {f"blend without {part}" for part in (*PARTS, "time")}
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
    for excluded, kept in (("zero-shot", "again"), ("again", "zero-shot")):
        ranker = stage.without[excluded].load(4)
        assert [model.name for model in ranker.models] == [kept]
        assert np.isfinite(ranker.score(rows)).all()


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
        ranker.know({})
        assert np.isfinite(ranker.score(inputs.data.test[:3])).all()
    assert len(loads) == 1
    assert len(asked) == 2


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
    """The names and targets of questions are placeholders, which a validation example may have, too."""
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
    entry, evaluate = run.stage("words"), {"split": "validation", "references": [], "rows": None, "generate_rows": 0}
    section = recipe.evaluate.model_copy(update=evaluate)
    for predict, split in ((predict_all, "lists"), (predict_full, "full")):
        found = predict(run.data, section, [], [entry], tmp_path / split, seed=0).sort("row")
        rows = [
            replace(e, candidates=tuple(c)) for e, c in zip(run.data.validation, found["candidates"], strict=True)
        ]
        crossed, own = (e.load(8).score(rows) for e in (entry.on("validation"), entry))
        for scores, want in zip(found["scores"], crossed, strict=True):
            np.testing.assert_allclose(scores, want[: len(scores)], rtol=1e-5)
        assert not np.allclose(crossed, own)


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
    """Questions without a user have the same name, and the same candidates."""
    data = read_prepared(finished / "data")

    class ByHistory:
        name = "lm"

        def score(self, examples):
            return np.array([[float(c in e.history) for c in e.candidates] for e in examples])

    listed = tuple(data.catalogue.ids[:6])
    one, other = (RankingExample("-", (item,), listed, listed[0]) for item in listed[1:3])
    late = LazyRanker(FixedStage(ByHistory()), 4)
    for begin in (lambda: None, lambda: late.know({})):
        begin()
        assert [late.score([e]).argmax() for e in (one, other)] == [1, 2]


def test_a_part_that_the_log_does_not_allow_is_left_out_and_told(finished, recipe, tmp_path, monkeypatch, capsys):
    inputs = _inputs(finished, recipe)
    before = {name: BaselineStage(inputs, name) for name in ("EASE", "popularity", "newest first")}

    def entry(*parts):
        return BlendStage(inputs, BlendConfig(parts=parts), tmp_path, before)

    assert entry("popularity", "EASE").without.keys() == {"popularity", "EASE", "time"}
    monkeypatch.setattr(baselines, "MOST_ITEMS", 10)
    smaller = entry("popularity", "EASE", "newest first")
    assert smaller.without.keys() == {"popularity", "time"}
    smaller.make()
    told = " ".join("".join(capsys.readouterr()).split())
    assert "blend: EASE is left out: it inverts an item × item matrix, of at most 10 items" in told
    assert "blend: newest first is left out: it needs dates, but the times of the log are counters" in told
    assert np.isfinite(smaller.load(4).score(inputs.data.test[:2])).all()
    with pytest.raises(ConfigError, match=r"rankers\.blend\.parts: the data have none of these parts: EASE inverts"):
        entry("EASE")
    with pytest.raises(ConfigError, match=r"EASE inverts an item .*: name another ranker"):
        before["EASE"].load(4)


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
    assert [e.name for e in whole.ablations] == [f"blend without {part}" for part in (*parts, "time")]
    kept = [part for part in (*parts, "time") if part not in left_out]
    assert [e.name for e in selected.ablations] == [f"blend without {part}" for part in kept]
    rows = inputs.data.test[:3]
    without = selected.without["random"].load(4)
    assert np.array_equal(without.score(rows), selected.load(4).score(rows))


def test_a_baseline_is_fitted_once_for_all_blends_of_a_log(finished, recipe, monkeypatch):
    own, fitted = _inputs(finished, recipe), []
    baseline_rankers = inputs_module.baseline_rankers

    def counted(log, catalogue, seed, names, *more):
        fitted.append((*names, len(log)))
        return baseline_rankers(log, catalogue, seed, names, *more)

    monkeypatch.setattr(inputs_module, "baseline_rankers", counted)
    for name in ("one", "two"):
        stage = BlendStage(own, BlendConfig(name=name, parts=["popularity"]), finished / "rankers/words", {})
        for split in ("validation", "test"):
            for ranker in stage.parts.rankers(split, 4)[0]:
                ranker.score(own.data.test[:2])
    assert fitted == [("popularity", len(own.data.known_interactions(split))) for split in ("validation", "test")]
