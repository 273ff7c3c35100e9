"""Which rows are cold, how many of them are asked, and the whole study on a log with late users and items."""

import numpy as np
import polars as pl
import pytest

from prefrec.data.types import COUNTED
from prefrec.evaluation import metrics_for
from prefrec.intake import prepare
from prefrec.pipeline.opened import open_run
from prefrec.rankers.baselines import PopularityRanker
from prefrec.recipe import Recipe
from prefrec_lab.studies.cold_start import (
    COLD_ITEM,
    COLD_START,
    COLD_USER,
    WARM,
    cold_recipe,
    cold_rows,
    examples_behind,
)
from prefrec_lab.study_tools.carry_out import carry_out
from tiny_run import ITEMS

LATE_USERS, LATE_ITEMS = 6, 8


@pytest.fixture(scope="module")
def late(base, tmp_path_factory):
    """The base recipe on a log in which some users come late, and the last items come with them."""
    folder = tmp_path_factory.mktemp("late")
    rng, log = np.random.default_rng(0), []
    for u in range(30):
        for n, item in enumerate(rng.choice(ITEMS - LATE_ITEMS, 9, replace=False).tolist()):
            log.append((f"u{u:02}", f"i{item}", COUNTED + 100 * n + u))
    for u in range(LATE_USERS):
        for n, item in enumerate(rng.choice(np.arange(40, ITEMS), 5, replace=False).tolist()):
            log.append((f"late{u}", f"i{item}", COUNTED + 900 + 10 * n + u))
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    raw = base.model_dump(mode="json")
    raw["data"] |= {"interactions": str(folder / "log.csv")}
    raw["evaluate"] |= {"rows": 9}
    for section in (raw["sft"], *raw["align"]):
        section["latest_per_user"] = 3
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def summary(late, place):
    return carry_out(COLD_START, late, [0], place / "cold")


@pytest.mark.parametrize("n", [1, 3, 5, 9, 1000])
def test_rows_of_each_kind(late, n):
    data = prepare(cold_recipe(late).data)
    known, chosen = set(data.train_interactions["item_id"].to_list()), cold_rows(data, n, 0).test
    assert chosen == [e for e in data.test if e in chosen] == cold_rows(data, n, 0).test

    def count(rows):
        absent = [e for e in rows if e.target not in known]
        few = [e for e in rows if len(e.history) <= 3 and e not in absent]
        warm = [e for e in rows if e not in few and e not in absent]
        return [len([e for e in few if len(e.history) == h]) for h in (1, 2, 3)], len(absent), len(warm)

    (lengths, absent, warm), (all_lengths, all_absent, all_warm) = count(chosen), count(data.test)
    assert min(all_lengths) > 0
    assert all_absent > 3
    assert lengths == [min(of, (n + 2 - place) // 3) for place, of in enumerate(all_lengths)]
    assert (absent, warm) == (min(n, all_absent), min(n, all_warm))
    if n == 1000:
        assert chosen == data.test


def test_baselines_count_what_the_models_have_learnt(summary, place):
    run = open_run(place / "cold" / "runs" / "cold-start-seed-0")
    assert not run.data.validation_interactions.is_empty()
    assert {*run.results.evaluation.logs.values()} == {"training"}
    assert "All rankers were trained on the same log: training." in summary["notes"]
    answers, counted = run.predictions().filter(ranker="popularity"), {}
    rows = examples_behind(run, answers)
    for log in ("validation", "test"):
        counted[log] = PopularityRanker.fit(run.data.known_interactions(log)).score(rows)
    np.testing.assert_allclose(answers["scores"].to_list(), counted["validation"])
    assert not np.allclose(counted["validation"], counted["test"])


def test_groups_hold_what_the_run_said(summary, place):
    """The slow twin: each row's kind from the log itself."""
    run = open_run(place / "cold" / "runs" / "cold-start-seed-0")
    known = set(run.data.train_interactions["item_id"].to_list())
    past = {(e.user_id, e.target): len(e.history) for e in run.data.test}
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)
    ndcg = metrics_for([3])["ndcg@3"]
    for ranker in ("sft", "s-dpo", "popularity", "zero-shot", "MoRec"):
        values = {COLD_USER: [], COLD_ITEM: [], WARM: []}
        frame = run.predictions().filter(ranker=ranker)
        for user, target, *ranks in frame.select("user_id", "target", "rank", "tied").iter_rows():
            gain = float(ndcg(*np.array(ranks)[:, None])[0])
            kind = COLD_ITEM if target not in known else COLD_USER if past[user, target] <= 3 else WARM
            values[kind].append(gain)
        for group, of in values.items():
            row = table.filter(group=group, variant=ranker, quantity="ndcg@3")
            assert row["n"].to_list() == [len(of)]
            assert row["mean"].item() == pytest.approx(np.mean(of))
