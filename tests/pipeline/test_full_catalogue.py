"""Which candidates the rows of an evaluation over the whole catalogue have, for each split."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import PrepareConfig, prepare, read_prepared, write_prepared
from prefrec.evaluation import target_ranks
from prefrec.pipeline.entry import Entry, full_entries
from prefrec.pipeline.recipe import REFERENCE_RANKERS
from prefrec.pipeline.score import KEPT, ask_all, fit_references, full_rows
from prefrec.rankers import CatalogueRanker, RandomRanker, reference_rankers
from tiny_run import ITEMS


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """20 of the shop's items for each of 30 users, at times of their own; and the path of the file."""
    rng = np.random.default_rng(0)
    times = rng.permutation(30 * 20).reshape(30, 20).tolist()
    rows = [
        (f"u{user}", f"i{item}", time)
        for user, own in enumerate(times)
        for item, time in zip(rng.permutation(ITEMS)[:20].tolist(), own, strict=True)
    ]
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
    section = recipe.evaluate.model_copy(update={"split": part, "rows": None})
    found = full_rows(data, section)
    assert [(e.user_id, e.history, e.target) for e in found] == [
        (e.user_id, e.history, e.target) for e in data.split(part)
    ]
    when = {(user, item): time for user, item, time in rows}
    for e in found:
        taken = {item for of, item, time in rows if of == e.user_id and time < when[e.user_id, e.target]}
        assert list(e.candidates) == [i for i in data.catalogue.ids if i not in taken]


def test_ranks_and_the_first_items_are_kept(recipe, data, tmp_path):
    section = recipe.evaluate.model_copy(update={"rows": 7})
    found = ask_all(data, section, fit_references(data, section, 0), [], tmp_path, seed=0, full=True)
    asked = full_rows(data, section)
    assert len(found) == len(REFERENCE_RANKERS) * 7
    for ranker in reference_rankers(data.train_interactions, data.catalogue, validation=data.validation):
        scores = ranker.score(asked)
        ranks = target_ranks(scores, [e.target_index for e in asked])
        for answer, row, e, rank, tied in zip(
            found.filter(pl.col("ranker") == ranker.name).iter_rows(named=True), scores, asked, *ranks, strict=True
        ):
            assert (answer["rank"], answer["tied"]) == (rank, tied)
            assert answer["listed"] == len(e.candidates)
            assert len(answer["candidates"]) == KEPT
            of = dict(zip(e.candidates, row.tolist(), strict=False))
            assert (
                [of[c] for c in answer["candidates"]] == answer["scores"] == sorted(of.values(), reverse=True)[:KEPT]
            )


def test_rankers_that_cannot_be_asked_are_left_out(entries):
    def ranker(name, **more):
        return Entry(name, name, lambda _: RandomRanker(0, name), **more)

    able = ranker("able", load_full=lambda _: RandomRanker(1, "able"))
    found = full_entries([*entries, ranker("not"), able])
    assert [e.name for e in found] == ["zero-shot", "sft", "able"]
    assert isinstance(found[0].load(8), CatalogueRanker)
    assert found[0].key != entries[0].key
    assert found[2].load(8).seed == 1
