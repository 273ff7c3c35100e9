"""Lists of other rows' targets: blind rules are at chance, classes stay apart, and the seed alone decides."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.data.candidates import SampledCandidates, pair_keys
from prefrec.data.target_candidates import auto_kind, target_candidates
from prefrec.errors import DataError
from prefrec.evaluation.metrics import expected_hits
from prefrec.intake import PrepareConfig, prepare

SIZE = 5


def drifting_shop(folder: Path, **options: Any) -> PreparedData:
    """A shop in which each day sells the 60 youngest items of 300, some more than others."""
    rng, rows, shares = np.random.default_rng(0), set(), 1.0 / np.arange(1, 61)
    for day in range(120):
        for user in rng.choice(80, 25, replace=False):
            item = 2 * day + int(rng.choice(60, p=shares / shares.sum()))
            rows.add((f"u{user}", f"i{item}", 1_600_000_000 + 86_400 * day + int(user)))
    log = pl.DataFrame(sorted(rows), schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(folder / "log.csv")
    items = log["item_id"].unique().sort().to_list()
    pl.DataFrame({"item_id": items, "title": [f"T{i}" for i in items]}).write_csv(folder / "items.csv")
    files = {"source": "files", "interactions": folder / "log.csv", "items": folder / "items.csv"}
    return prepare(PrepareConfig(**files, **{"split": "time", "candidates": {"size": SIZE}} | options))


def hr(data: PreparedData, values: dict[str, float], otherwise: float) -> float:
    """HR@1 of the rule that puts the item with the highest value first."""
    scores = [[values.get(i, otherwise) for i in e.candidates] for e in data.test]
    return float(expected_hits(scores, [e.target_index for e in data.test]).mean())


def test_blind_rules_find_targets_of_uniform_lists_and_are_at_chance_in_lists_of_targets(tmp_path):
    for kind, least, most in (("uniform", 0.4, 1.0), ("targets", 0.0, 0.24)):
        data = drifting_shop(tmp_path, candidates={"kind": kind, "size": SIZE})
        counts = dict(data.train_interactions["item_id"].value_counts().iter_rows())
        sold = Counter(e.target for e in data.test)  # the strongest rule of all: it knows the targets themselves
        first_sales = data.train_interactions.group_by("item_id").agg(pl.min("timestamp").cast(pl.Float64))
        newest = hr(data, dict(first_sales.iter_rows()), np.inf)  # items without one are the youngest
        rarest = hr(data, {i: -float(n) for i, n in counts.items()}, 0.0)
        common = hr(data, {i: float(n) for i, n in sold.items()}, -1.0)
        assert all(least < rate < most for rate in (newest, rarest, common)), (kind, newest, rarest, common)


def test_the_note_on_candidates_speaks_of_ages_only_where_there_are_dates(tmp_path):
    dated = " ".join(drifting_shop(tmp_path).protocol["notes"])
    assert "never-sold items are more than twice as common" in dated
    assert "an item's age would reveal the target" in dated
    # Each user's lines are in temporal order, too, if the lines of the whole log are.
    log = pl.read_csv(tmp_path / "log.csv").sort("timestamp").with_row_index("n")
    log.select("user_id", "item_id", timestamp="n").write_csv(tmp_path / "log.csv")
    files = {"source": "files", "interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    counted = " ".join(prepare(PrepareConfig(**files, split="user", candidates={"size": SIZE})).protocol["notes"])
    assert "items without training interactions are more than twice as common" in counted
    assert "never-sold" not in counted
    assert "age would" not in counted


def test_each_item_is_the_target_of_one_in_size_of_its_lists(tmp_path):
    data = drifting_shop(tmp_path, candidates={"kind": "targets", "size": SIZE})
    known = set(data.train_interactions["item_id"])
    targets, listed = Counter(e.target for e in data.test), Counter(i for e in data.test for i in e.candidates)
    for of_known in (True, False):
        rows = [e for e in data.test if (e.target in known) == of_known]
        assert len(rows) > 50
        assert all((i in known) == of_known for e in rows for i in e.candidates)
        often = [i for i, n in targets.items() if (i in known) == of_known and 5 <= n < len(rows) / SIZE / 2]
        assert len(often) > 5
        shares = [targets[i] / listed[i] for i in often]
        assert np.mean(shares) == pytest.approx(1 / SIZE, rel=0.1)
        assert max(shares) < 1.7 / SIZE
    touched = {u: {*f["item_id"]} for (u,), f in pl.read_csv(tmp_path / "log.csv").group_by("user_id")}
    for e in data.test:
        assert {*e.candidates} & touched[e.user_id] == {e.target}
        assert len(set(e.candidates)) == SIZE
    assert {len(e.candidates) for e in data.train} == {SIZE}


def test_items_that_most_users_touched_are_the_target_of_one_in_size_of_their_lists_too():
    """Three users in four touched the first ten items, which can be negatives of the others alone."""
    owners, targets = np.arange(2_000), np.random.default_rng(0).integers(60, size=2_000)
    touched = (owners[:, None] + np.arange(60)) % 4 > 0
    touched[:, 10:] = False
    touched[owners, targets] = True
    users, pairs = pl.Series([f"u{u}" for u in owners]), pair_keys(np.nonzero(touched), 60)
    lists = SampledCandidates(users, np.ones(60), pairs, "test", 0, SIZE)
    drawn = target_candidates(lists, owners, targets, known=np.ones(60, dtype=bool))(owners, owners, owners, targets)
    shares = np.bincount(targets, minlength=60) / np.bincount(np.ravel(drawn), minlength=60)
    assert shares[:10].mean() == pytest.approx(1 / SIZE, abs=0.02)
    assert shares[10:].mean() == pytest.approx(1 / SIZE, abs=0.02)


def test_the_seed_decides_and_training_rows_keep_uniform_lists(tmp_path):
    one, two = (drifting_shop(tmp_path, candidates={"kind": "targets", "size": SIZE}) for _ in range(2))
    uniform = drifting_shop(tmp_path, candidates={"kind": "uniform", "size": SIZE})
    other = drifting_shop(tmp_path, candidates={"kind": "targets", "size": SIZE}, seed=1)
    assert (one.test, one.validation, one.train) == (two.test, two.validation, uniform.train)
    assert one.test not in (uniform.test, other.test)


def test_auto_chooses_targets_where_never_sold_items_are_more_common_among_them(tmp_path):
    data = drifting_shop(tmp_path)
    assert data.protocol["candidates"] == {"kind": "targets", "size": SIZE}
    assert "negatives are the targets of other examples" in data.protocol["notes"][-1]
    assert drifting_shop(tmp_path, split="leave-last-out").protocol["candidates"]["kind"] == "uniform"
    few = {"max_validation_rows": 2, "max_test_rows": 2}
    assert drifting_shop(tmp_path, **few).protocol["candidates"]["kind"] == "uniform"
    with pytest.raises(DataError, match=r"has only \d unseen items, but 5 candidates need 4 negatives"):
        drifting_shop(tmp_path, candidates={"kind": "targets", "size": SIZE}, **few)
    known = np.arange(10) < 8  # a fifth of the catalogue is new
    for new, kind in ((2, "uniform"), (4, "uniform"), (5, "targets")):
        assert auto_kind(np.array([9] * new + [0] * (10 - new)), known) == kind
    assert auto_kind(np.array([9] + [0] * 999), np.arange(10_000) < 9_999) == "uniform"  # one target in a thousand


def test_a_class_that_is_too_small_joins_the_other():
    """Three new targets, lists of five: new and known targets stand in one list."""
    users, n_items = pl.Series([f"u{u}" for u in range(60)]), 40
    owners, targets = np.arange(60), np.arange(60) % 23
    lists = SampledCandidates(users, np.ones(n_items), pair_keys((owners, targets), n_items), "test", 0, SIZE)
    made = target_candidates(lists, owners, targets, known=np.arange(n_items) < 20)
    drawn = made(owners, owners, owners, targets)
    assert {len(own) for own in drawn} == {SIZE}
    assert any(min(own) < 20 <= max(own) for own in drawn)
    assert {i for own in drawn for i in own} == set(range(23))
    apart = target_candidates(lists, owners, targets, known=np.arange(n_items) < 12)(owners, owners, owners, targets)
    assert not any(min(own) < 12 <= max(own) for own in apart)


def test_a_target_that_its_user_has_not_touched_is_no_negative():
    """As in data that keep repeats: lists of five need five targets of a class, or else of both."""
    users, known = pl.Series([f"u{u}" for u in range(60)]), np.arange(40) < 20
    nothing = np.zeros(0, dtype=np.int64)
    lists = SampledCandidates(users, np.ones(40), pair_keys((nothing, nothing), 40), "test", 0, SIZE)
    owners = np.arange(60)
    for n_new in (SIZE, SIZE - 1):
        targets = owners % (20 + n_new)
        drawn = target_candidates(lists, owners, targets, known)(owners, owners, owners, targets)
        assert all(len({*own}) == SIZE and target in own for own, target in zip(drawn, targets, strict=True))
        assert any(min(own) < 20 <= max(own) for own in drawn) == (n_new < SIZE)
    with pytest.raises(DataError, match=r"user 'u0' has only 3 unseen items, .* to 4 or less"):
        target_candidates(lists, owners, owners % 4, known)


def test_auto_is_uniform_if_repeats_leave_too_few_targets(tmp_path):
    """Four never-sold items are the only targets, and lists have five candidates."""
    past = [(f"u{u}", f"i{(u + n) % 10}", 86_400 * n) for u in range(12) for n in range(6)]
    last = [(f"u{u}", f"new{(u + n) % 4}", 86_400 * (10 + n)) for u in range(12) for n in range(2)]
    log = pl.DataFrame(past + last, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(tmp_path / "log.csv")
    log.select("item_id", title="item_id").unique().write_csv(tmp_path / "items.csv")
    files = {"source": "files", "interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    data = prepare(PrepareConfig(**files, repeats="keep", candidates={"size": SIZE}))
    assert data.protocol["candidates"]["kind"] == "uniform"
    assert {len(e.candidates) for e in (*data.validation, *data.test)} == {SIZE}
