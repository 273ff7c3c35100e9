"""Which candidates the rows of an evaluation over the whole catalogue have, for each split."""

import numpy as np
import polars as pl
import pytest

from baselines import UNDATED_BASELINES
from fixed_rankers import FixedStage
from full_ranks import full_ranks, whole_catalogue
from prefrec.data import read_prepared, seen_items, write_prepared
from prefrec.intake import PrepareConfig, prepare
from prefrec.pipeline.score import full_stages, predict_full
from prefrec.rankers import CatalogueRanker, RandomRanker
from prefrec.rankers.fitted_baselines import FittedBaselines
from tiny_run import ITEMS


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """20 of the shop's items for each of 30 users, at times of their own; and the path of the file."""
    rng = np.random.default_rng(0)
    times = (1_500_000_000 + rng.permutation(30 * 20)).tolist()
    taken = [(f"u{user}", f"i{item}") for user in range(30) for item in rng.permutation(ITEMS)[:20].tolist()]
    rows = [(*pair, time) for pair, time in zip(taken, times, strict=True)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(path)
    return rows, path


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    "how", [{}, {"split": "time"}, {"split": "user"}, {"split": "user", "windows": "all"}], ids=str
)
def test_candidates_are_what_the_user_has_not_taken_before(recipe, log, tmp_path, how, part):
    rows, path = log
    raw = recipe.data.model_dump() | {"interactions": path, "history_length": 2} | how
    write_prepared(prepare(PrepareConfig.model_validate(raw)), tmp_path)
    data = read_prepared(tmp_path)
    found = whole_catalogue(data.split(part), data.catalogue, seen_items(data, data.split(part)))
    when = {(user, item): time for user, item, time in rows}
    for e in found:
        taken = {item for of, item, time in rows if of == e.user_id and time < when[e.user_id, e.target]}
        assert list(e.candidates) == [i for i in data.catalogue.ids if i not in taken]


def test_all_rows_are_asked_but_of_slow_rankers_only_some(recipe, data, tmp_path, entries):
    section = recipe.evaluate.model_copy(update={"rows": 9, "full_rows": 4})
    fast = FixedStage(RandomRanker(3, "fast"), full=RandomRanker(3, "fast"))
    slow = entries[0]
    fitted = FittedBaselines(data, 0).before(section.split, section.baselines)
    found = predict_full(data, section, fitted, [slow, fast], tmp_path, seed=0)
    rankers = [name for name in UNDATED_BASELINES if name != "random"]
    assert found["ranker"].unique(maintain_order=True).to_list() == [*rankers, slow.name, "fast"]
    assert dict(found.group_by("ranker").len().iter_rows()) == {**dict.fromkeys([*rankers, "fast"], 9), slow.name: 4}
    # The same questions, row by row, as of the slow twin.
    rows = data.examples("test", 9)
    ranks, tied = full_ranks(RandomRanker(3), rows, data.catalogue, seen_items(data, rows))
    own = found.filter(ranker="fast")
    assert (own["rank"].to_list(), own["tied"].to_list()) == (ranks.tolist(), tied.tolist())
    assert found.filter(ranker=slow.name)["row"].to_list() == [data.test.index(e) for e in data.examples("test", 4)]


def test_rankers_that_cannot_be_asked_are_left_out(entries):
    alone, able = FixedStage(RandomRanker(0, "not")), RandomRanker(0, "able")
    found = full_stages([*entries, alone, FixedStage(able, full=RandomRanker(1, "able"))])
    assert [e.name for e in found] == ["zero-shot", "sft", "able"]
    assert isinstance(found[0].load(8), CatalogueRanker)
    assert found[0].key != entries[0].key
    assert found[2].load(8).seed == 1
