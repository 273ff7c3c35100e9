"""Results print as tables, with the verdict first."""

import polars as pl
import pytest

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import FULL_RANKING, audit_lists, evaluate
from prefrec.rankers import PopularityRanker, RandomRanker

ITEMS = [f"i{n}" for n in range(8)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"<b>{i}</b>" for i in ITEMS]}))
ROWS = [RankingExample(f"u{n}", (), tuple(ITEMS[:4]), ITEMS[n % 4]) for n in range(24)]
LOG = pl.DataFrame([(f"u{n}", ITEMS[n % 3], n) for n in range(60)], ["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def results():
    rankers = [RandomRanker(), PopularityRanker.fit(LOG)]
    return evaluate(rankers, ROWS, CATALOGUE, audit=FULL_RANKING), audit_lists(ROWS, [], CATALOGUE, LOG)


def test_an_evaluation_is_a_table(results):
    found, _ = results
    hr = found.metrics["popularity"]["hr@1"]
    frame = found.frame()
    assert frame["ranker"].to_list() == ["random", "popularity"]
    assert frame["HR@1"][1] == f"{hr.mean:.3f} [{hr.low:.3f}, {hr.high:.3f}]"
    assert frame.columns == ["ranker", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    first, *lines = repr(found).splitlines()
    assert first == FULL_RANKING.verdict
    assert frame["HR@1"][1] in next(line for line in lines if "popularity" in line)
    assert lines[-1].startswith("n = 24 examples of 24 users")
    assert found._repr_html_().count("<tr>") == 3


def test_an_audit_is_a_table(results):
    _, audit = results
    assert repr(audit).startswith(audit.verdict)
    assert all(row.name in repr(audit) for row in audit.rows)
    assert audit._repr_html_().count("<tr>") == 1 + len(audit.rows)
