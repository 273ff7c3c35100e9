"""docs/other-libraries.md: its adapters, run beside the libraries where these are installed."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from fixed_rankers import FixedStage
from prefrec import Recommender
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import ConfigError
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.window import WindowCooccurrenceRanker
from test_docs import blocks

PAGE = Path(__file__).parents[1] / "docs" / "other-libraries.md"
ITEMS = [f"i{n}" for n in range(8)]
TAKEN = {"a": "01234", "b": "1204", "c": "0231", "d": "4530", "e": "5431"}
LOG = make_log([(user, f"i{n}", 10**9 + 86400 * day) for user, row in TAKEN.items() for day, n in enumerate(row)])
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"Title {i}" for i in ITEMS]}))
DATA = PreparedData(CATALOGUE, [], [], [], LOG, {})
ROWS = [
    RankingExample("a", ("i0", "i1"), ("i2", "i3", "i7", "i5"), "i2"),
    RankingExample("new", ("i5", "i7"), ("i4", "i1"), "i4"),
    RankingExample("empty", ("i7",), ("i7", "i1", "i0"), "i1"),
]


def adapters(language: int) -> dict:
    """Return what a block of the page makes."""
    made: dict = {}
    exec(blocks(PAGE, "python")[language], made)
    return made


@pytest.fixture
def recommender():
    """A recommender whose answers depend on the order of the history."""
    ranker = WindowCooccurrenceRanker.fit(LOG, half_life=0.5)
    return Recommender(DATA, FixedStage(ranker, full=ranker))


@pytest.fixture
def lenskit():
    return pytest.importorskip("lenskit", reason="lenskit is not installed: pip install lenskit")


@pytest.fixture
def rectools():
    return pytest.importorskip("rectools", reason="rectools is not installed: docs/other-libraries.md says how")


def test_a_lenskit_scorer_ranks_as_in_lenskit(lenskit):
    from lenskit.knn import ItemKNNScorer

    ranker = adapters(0)["LensKitRanker"]("kNN", ItemKNNScorer(feedback="implicit", max_nbrs=5)).fit(DATA)
    scores = ranker.score(ROWS)
    pairs = LOG.select("user_id", "item_id").join(LOG.select("user_id", other="item_id"), on="user_id")
    counts = {row[:2]: row[2] for row in pairs.group_by("item_id", "other").len().iter_rows()}

    def cosine(a: str, b: str) -> float:
        return counts.get((a, b), 0) / np.sqrt(counts[a, a] * counts[b, b])

    np.testing.assert_allclose(scores[0][:2], [cosine("i0", i) + cosine("i1", i) for i in ("i2", "i3")], rtol=1e-5)
    assert scores[0][2] == scores[0].min() < min(scores[0][:2])
    assert np.isfinite(scores[:, :2]).all()
    assert scores[1][0] > scores[1][1]
    assert np.isneginf(scores[1][2:]).all()


def test_a_run_is_a_lenskit_scorer(lenskit, recommender):
    from lenskit.data import from_interactions_df
    from lenskit.operations import recommend, score
    from lenskit.pipeline import topn_pipeline

    scorer = adapters(1)["PrefrecScorer"](folder="runs/films")
    scorer.recommender = recommender
    pipeline = topn_pipeline(scorer)
    pipeline.train(from_interactions_df(LOG.with_columns(pl.from_epoch("timestamp")).to_pandas()))
    for user, row in TAKEN.items():
        history = [f"i{n}" for n in row]
        want = recommender.recommend(history, 8, exclude_seen=False)
        found = dict(zip(ITEMS, score(pipeline, user, ITEMS).scores(), strict=True))
        assert found == pytest.approx({w.item_id: w.score for w in want})
        best = [w.item_id for w in recommender.recommend(history, 2)]
        assert recommend(pipeline, user, 2, items=[i for i in ITEMS if i not in history]).ids().tolist() == best
    assert np.isnan(score(pipeline, "a", ["i0", "other"]).scores()).tolist() == [False, True]
    assert len(score(pipeline, "stranger", ITEMS)) == 8


def test_a_rectools_model_ranks_as_in_rectools(rectools):
    from rectools.models import EASEModel, PopularModel, PureSVDModel

    ranker = adapters(2)["RecToolsRanker"]
    scores = ranker("EASE", EASEModel(regularization=10.0)).fit(DATA).score(ROWS)
    twin = EASERanker.fit(LOG, 10.0)  # RecTools reads the weights the other way round: to the history, not from it
    for row, e in zip(scores[:2], ROWS, strict=False):
        for found, c in zip(row, e.candidates, strict=False):
            if c != "i7":
                want = sum(twin.weights[twin.index[c], twin.index[i]] for i in e.history if i != "i7")
                assert found == pytest.approx(want, rel=1e-4)
    assert scores[0][2] < scores[:2, :2].min()
    assert len({*scores[2][:3]}) == 1
    assert np.argmax(ranker("popular", PopularModel()).fit(DATA).score(ROWS[:1])) == 1
    with pytest.raises(ConfigError, match="SVD: PureSVDModel has vectors of users, and none for a history"):
        ranker("SVD", PureSVDModel(factors=2))


def test_a_run_is_a_rectools_model(rectools, recommender):
    from rectools.dataset import Dataset

    log = LOG.select("user_id", "item_id", weight=pl.lit(1.0), datetime=pl.from_epoch("timestamp"))
    dataset = Dataset.construct(log.sample(fraction=1.0, shuffle=True, seed=0).to_pandas())
    model = adapters(3)["PrefrecModel"](recommender).fit(dataset)
    found = model.recommend([*TAKEN], dataset, k=3, filter_viewed=True)
    for user, row in TAKEN.items():
        items = {f"i{n}" for n in "012345"}
        want = recommender.recommend([f"i{n}" for n in row], 3, allow=items)
        own = found[found["user_id"] == user]
        assert own["item_id"].tolist() == [w.item_id for w in want]
        assert own["score"].tolist() == pytest.approx([w.score for w in want])
    listed = model.recommend(["a"], dataset, k=9, filter_viewed=False, items_to_recommend=["i0", "i3"])
    assert {*listed["item_id"]} == {"i0", "i3"}
