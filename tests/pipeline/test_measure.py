"""The evaluation stage: who is compared with whom, the block of the whole catalogue, and rows with new targets."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from baselines import UNDATED_BASELINES
from fixed_rankers import FixedStage
from full_ranks import full_ranks, whole_catalogue
from prefrec.data import seen_items
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import FULL_RANKING, evaluate_full, metrics_for, user_spread
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.measure import best_baseline, comparison_pairs, evaluate_rankers, logs_read
from prefrec.rankers import CatalogueRanker, ItemKNNRanker, PopularityRanker, RandomRanker, pad_scores
from prefrec.rankers.blend import BlendConfig
from prefrec.sections import EvaluateSection
from prefrec.stages.blend import BlendStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker


@pytest.fixture
def evaluate(recipe, data, tmp_path):
    def run(entries, *, on=data, **changes):
        section = EvaluateSection.model_validate(recipe.evaluate.model_dump() | {"generate_rows": 0} | changes)
        return evaluate_rankers(on, section, entries, tmp_path / "cache", seed=0)

    return run


@pytest.fixture
def others():
    """A ranker that can be asked about the whole catalogue, and one that cannot."""
    able = RandomRanker(5, "able")
    return [FixedStage(able, full=able), FixedStage(RandomRanker(6, "lists only"))]


def test_pairs():
    assert comparison_pairs([], [], "popularity") == []
    assert comparison_pairs(["a", "b"], ["SASRec", "a", "b", "MoRec"], None) == [("b", "a")]
    rankers = ["SASRec", "a", "b", "c"]
    pairs = comparison_pairs(rankers[1:], rankers, "item-kNN")
    assert pairs == [("b", "a"), ("c", "b"), *((name, "item-kNN") for name in rankers)]


def test_alignments_are_compared_with_the_model_that_they_started_from():
    starts = {"dpo": "sft", "s-dpo": "sft"}
    pairs = [("sft", "zero-shot"), ("dpo", "sft"), ("s-dpo", "dpo"), ("s-dpo", "sft")]
    assert comparison_pairs(["zero-shot", "sft", "dpo", "s-dpo"], [], None, starts) == pairs
    assert comparison_pairs(["dpo", "s-dpo"], [], None, starts) == [("s-dpo", "dpo")]  # sft was not evaluated


def test_the_logs_of_rankers_that_query_a_blend(recipe, data, tmp_path):
    """A ranker that asks a blend counts validation interactions, too; one that has only learnt from it does not."""

    class Asking(FixedStage):
        queries = True

        def __init__(self, name, needed):
            super().__init__(RandomRanker(0, name))
            self.before = {needed.name: needed}

    inputs = RunInputs(data, "key", recipe.model, recipe.lora, 0)
    blend = BlendStage(inputs, BlendConfig(parts=["popularity"]), tmp_path, {})
    asking = Asking("asking", blend)
    learning = Asking("learning", blend)
    learning.queries = False
    stages = [blend, asking, Asking("far", asking), learning]
    section = EvaluateSection(baselines=["popularity"])
    both, part = "training and validation", "training, and its counts and baselines validation, too"
    want = {"popularity": both, "blend": part, "asking": part, "far": part, "learning": "training"}
    assert logs_read(data, section, stages) == want
    assert logs_read(data, section, stages, counted="validation") == want | {"popularity": "training"}
    for stage in stages:
        stage.first = blend
    assert {*logs_read(data, section, stages).values()} == {both}


def test_the_best_baseline_is_by_ndcg_and_the_first_of_equals():
    def frame(**ranks):
        return pl.concat(pl.DataFrame({"ranker": name, "rank": of, "tied": 0}) for name, of in ranks.items())

    ranks = {"one": [1, 40, 40], "two": [2, 3, 3], "three": [3, 2, 3], "model": [1, 1, 1]}
    assert best_baseline(frame(**ranks), ["one", "two", "three"]) == "two"  # HR@1 would have named the first
    assert best_baseline(frame(**ranks), ["three", "two", "one"]) == "two"  # in the order of the table
    assert best_baseline(frame(**ranks), []) is None


def test_every_model_is_compared_with_the_best_baseline(evaluate, entries, others):
    scores = evaluate([*entries, *others])
    for block, models in (
        (scores.evaluation, ["zero-shot", "sft", "able", "lists only"]),
        (scores.full_catalogue, ["zero-shot", "sft", "able"]),
    ):
        ndcg, mrr = (metrics_for([10])[name] for name in ("ndcg@10", "mrr"))
        ranks = {n: ranks_of(f.sort("row")) for (n,), f in block.predictions.group_by("ranker")}
        best = max((n for n in UNDATED_BASELINES if n in ranks), key=lambda n: ndcg(*ranks[n]).mean())
        assert block.best_reference == best
        pairs = list(dict.fromkeys((c.ranker, c.against) for c in block.comparisons))
        assert pairs == [("sft", "zero-shot"), *((m, best) for m in models)]
        want = (mrr(*ranks["sft"]) - mrr(*ranks[best])).mean()
        assert block.difference("sft", best, "mrr").mean == pytest.approx(want)


def test_the_whole_catalogue_is_a_second_block(evaluate, entries, others, data, recipe):
    results = evaluate([*entries, *others], full_rows=6)
    full = results.full_catalogue
    rows, some = data.examples("test", 20), data.examples("test", 6)
    assert full.rankers == [*UNDATED_BASELINES[1:], "zero-shot", "sft", "able"]  # what random reaches is known
    assert (full.n, full.audit) == (20, FULL_RANKING)
    counts = {name: own["mrr"].n for name, own in full.metrics.items()}
    assert {name: n for name, n in counts.items() if n < 20} == {"zero-shot": 6, "sft": 6}
    assert {(c.ranker, c.n) for c in full.comparisons} == {("sft", 6), ("zero-shot", 6), ("able", 20)}
    assert set(full.metrics["sft"]) == {"hr@10", "ndcg@10", "mrr"}
    lm = lm_ranker("zero-shot", None, data, recipe.model)
    for ranker, asked in ((PopularityRanker.fit(data.known_interactions("test")), rows), (CatalogueRanker(lm), some)):
        ranks = full_ranks(ranker, asked, data.catalogue, seen_items(data, asked))
        for metric, value in metrics_for([10]).items():
            assert full.metrics[ranker.name][metric].mean == pytest.approx(float(value(*ranks).mean()), abs=1e-9)
    sizes = [len(data.catalogue) - len(own) for own in seen_items(data, rows)]
    assert full.expected["hr@10"] == pytest.approx(np.mean([10 / size for size in sizes]))
    assert [*results.by_user] == full.rankers
    assert results.by_user["sft"] == user_spread(full.predictions.filter(ranker="sft"))["sft"]
    assert (results.by_user["sft"].users, results.by_user["able"].users) == (6, 20)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_full_ranking_of_objects_has_the_figures_of_a_run(evaluate, others, data, split):
    """All blocks of the table, for rankers without a stage: the same examples, candidates, intervals and groups."""
    want = evaluate(others, baselines=["popularity", "item-kNN"], split=split).full_catalogue
    log = data.known_interactions(split)
    rankers = [PopularityRanker.fit(log), ItemKNNRanker.fit(log), RandomRanker(5, "able")]
    pairs = list(dict.fromkeys((c.ranker, c.against) for c in want.comparisons))
    found = evaluate_full(rankers, data, split=split, rows=20, compare=pairs)
    assert len(found.groups) > 0
    assert replace(want, best_reference=None, logs={}) == found
    assert found.predictions.drop("ranker").equals(want.predictions.drop("ranker"))
    every = evaluate_full(rankers[2:], data, split=split, ks=[3])
    assert (every.n, {*every.metrics["able"]}) == (len(data.split(split)), {"hr@3", "ndcg@3", "mrr"})
    assert every.metrics["able"]["mrr"] != found.metrics["able"]["mrr"]


def test_full_ranking_of_objects_names_what_is_wrong(data):
    able = RandomRanker(5, "able")
    with pytest.raises(ConfigError, match="two rankers have the same name: able, able; rename one"):
        evaluate_full([able, able], data)
    with pytest.raises(ConfigError, match="cannot compare with bale: the rankers are able; did you mean able"):
        evaluate_full([able], data, compare="bale")
    for rows in (-1, 0, 2.5, True):
        with pytest.raises(ConfigError, match="rows: expected a whole number of at least 1, or None for all"):
            evaluate_full([able], data, rows=rows)
    with pytest.raises(ConfigError, match="split: expected validation or test, got 'train'; rankers have learnt"):
        evaluate_full([able], data, split="train")
    for rankers, on in (([], data), ([able], replace(data, test=[]))):
        with pytest.raises(DataError, match=f"nothing to evaluate: {len(rankers)} rankers, {len(on.test)} test ex"):
            evaluate_full(rankers, on)


def test_full_ranking_gives_a_reranker_only_the_items_that_may_be_ranked(data):
    class BestFirst:
        name, is_of_list = "best first", True

        def score(self, examples):
            asked.extend(examples)
            return pad_scores([[-n for n in range(len(e.candidates))] for e in examples])

    asked = []
    evaluate_full([BestFirst()], data, rows=5)
    rows = data.examples("test", 5)
    assert asked == whole_catalogue(rows, data.catalogue, seen_items(data, rows))


@pytest.mark.parametrize(("changes", "n"), [({"full_rows": 30}, 20), ({"rows": None, "full_rows": None}, 40)])
def test_it_is_asked_of_rows_of_the_table(evaluate, changes, n):
    assert evaluate([], **changes).full_catalogue.n == n


@pytest.mark.parametrize("ablations", [True, False])
def test_blends_without_a_part_are_ranked_unless_ablations_are_off(evaluate, others, ablations):
    name = "able without a part"
    less = RandomRanker(7, name)
    others[0].less = [FixedStage(less, full=less)]
    full = evaluate(others[:1], ablations=ablations, baselines=[]).full_catalogue
    compared = {(c.ranker, c.against) for c in full.comparisons}
    assert compared == ({("able", name)} if ablations else set())


@pytest.mark.parametrize("off", [{"ablations": False}, {"full_rows": 0}])
def test_ablations_are_not_read_where_they_are_off(evaluate, off):
    """A blend reads them from its file, and a stage of one's own may not have made them."""

    class Unmade(FixedStage):
        @property
        def ablations(self):
            raise AssertionError("ablations were read")

    ranker = RandomRanker(7, "own")
    assert "own" in evaluate([Unmade(ranker, full=ranker)], baselines=[], **off).evaluation.metrics


def test_zero_rows_turn_it_off(evaluate, tmp_path, entries):
    scores = evaluate(entries[:1], full_rows=0, baselines=[])
    assert scores.full_catalogue is None
    assert scores.evaluation.best_reference is None
    assert scores.to_json()["metrics.json"]["full_catalogue"] is None
    assert scores.by_user == {}
    assert not (tmp_path / "cache" / "full_catalogue").exists()


def test_rows_with_new_targets_are_told_apart(evaluate, data, entries):
    targets = {e.target for e in data.test[:4]}
    learnt = data.train_interactions.filter(~pl.col("item_id").is_in(list(targets)))
    validation = [e for e in data.validation if e.target not in targets]
    scores = evaluate(entries[:1], on=replace(data, train_interactions=learnt, validation=validation))
    is_new = np.array([e.target in targets for e in data.test[:20]])
    assert 4 <= is_new.sum() < 20
    for block in (scores.evaluation, scores.full_catalogue):
        kinds = {"warm": (~is_new).sum(), "new": is_new.sum()}
        if block is scores.full_catalogue:
            kinds |= {"known among known": kinds["warm"], "new among new": kinds["new"]}
        assert {name: g.n for name, g in block.groups.items()} == kinds
        new, warm = (block.groups[kind].metrics["popularity"]["mrr"].mean for kind in ("new", "warm"))
        assert new < warm
        for group in block.groups.values():
            assert list(group.metrics) == block.rankers
            assert set(group.expected) == set(block.metrics["popularity"])
