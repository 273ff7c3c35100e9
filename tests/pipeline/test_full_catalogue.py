"""Which candidates the rows of an evaluation over the whole catalogue have, for each split."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import PrepareConfig, prepare, read_prepared, write_prepared
from prefrec.pipeline.full_catalogue import evaluate_full_catalogue
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
    found = evaluate_full_catalogue(data, recipe.model, section, [], tmp_path, compare=[], seed=0).predictions
    answers = found.filter(pl.col("ranker") == "random")
    assert answers["user_id"].to_list() == [e.user_id for e in data.split(part)]
    when = {(user, item): time for user, item, time in rows}
    for user, target, candidates in answers.select("user_id", "target", "candidates").iter_rows():
        taken = {item for of, item, time in rows if of == user and time < when[user, target]}
        assert candidates == [i for i in data.catalogue.ids if i not in taken]
