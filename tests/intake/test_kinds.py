"""Kinds of interactions: their weights, which of them may be targets, and what equals a log without kinds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from drawn_logs import learnt_of, make_log
from prefrec.data import read_prepared, write_prepared
from prefrec.data.refit import with_validation
from prefrec.data.splits import by_share, by_time, by_user, first_only, leave_last_out, order
from prefrec.data.types import IS_TARGET, WEIGHT
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from read_sources import files

ITEMS = "item_id,title\n7,Hope\n8,Air\n9,Heat\n"
KINDS = ("view", "cart", "purchase")
EVENTS = st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 30), st.sampled_from(KINDS))
WAYS = [leave_last_out, by_time, by_user, by_share]


def _shop(folder: Path, log: str) -> dict[str, Path]:
    (folder / "log.csv").write_text(log)
    (folder / "items.csv").write_text(ITEMS)
    return {"interactions": folder / "log.csv", "items": folder / "items.csv"}


def _written(folder: Path, kept: tuple[str, ...] = KINDS, users: int = 12) -> Path:
    """Write a shop whose users view many things, and buy some of these; return the folder."""
    rng, rows = np.random.default_rng(0), []
    for user in range(users):
        for n, item in enumerate(rng.permutation(30)[:14]):
            rows.append((f"u{user}", f"i{item}", 100 * n, "view"))
            if n % 3 == 1:
                rows.append((f"u{user}", f"i{item}", 100 * n + 1, "cart"))
            if n % 2:
                rows.append((f"u{user}", f"i{item}", 100 * n + 350, "purchase"))
    frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "event"], orient="row")
    frame.filter(pl.col("event").is_in(kept)).write_csv(folder / "log.csv")
    lines = "".join(f"i{item},Thing {item}\n" for item in range(30))
    (folder / "items.csv").write_text(f"item_id,title\n{lines}")
    return folder


def _config(folder: Path, kinds=None, **more) -> PrepareConfig:
    own = {"source": "files", "interactions": folder / "log.csv", "items": folder / "items.csv"}
    own |= {"candidates": {"size": 5}, "min_history": 2}
    columns = {"columns": {"kind": "event"}, "kinds": kinds} if kinds else {}
    return PrepareConfig.model_validate(own | columns | more)


def _parts(data):
    return [[*data.train], [*data.validation], [*data.test], data.train_interactions, data.held_out_interactions]


def _same(one, other) -> bool:
    return all(a.equals(b) if isinstance(a, pl.DataFrame) else a == b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("split", ["leave-last-out", "user", "time-share"])
@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_weights_of_one_are_a_log_without_kinds(tmp_path, split, repeats):
    _written(tmp_path)
    ways = {"split": split, "repeats": repeats}
    plain = _parts(prepare(_config(tmp_path, **ways)))
    for kinds in ({"view": 1, "cart": 1, "purchase": 1}, {"view": 1, "cart": "buy", "purchase": "buy"}):
        assert _same(plain, _parts(prepare(_config(tmp_path, kinds, **ways))))
        assert _same(plain, _parts(prepare(_config(tmp_path, kinds, targets=[*KINDS], **ways))))


def test_a_weight_of_zero_drops_the_lines(tmp_path):
    _written(tmp_path)
    kinds = {"cart": 0.5, "purchase": "buy"}
    zero, word = (prepare(_config(tmp_path, kinds | {"view": nothing})) for nothing in (0, "drop"))
    assert _same(_parts(zero), _parts(word))
    (tmp_path / "less").mkdir()
    less = prepare(_config(_written(tmp_path / "less", ("cart", "purchase")), kinds))
    assert less.train_interactions.equals(zero.train_interactions)  # candidates are others: views are not offered
    assert [(e.history, e.target) for e in less.test] == [(e.history, e.target) for e in zero.test]


def _slowly_first(rows, is_asked, weights):
    """The line of each pair that is kept: one that may be a target, else the heaviest, the first of equal ones."""
    best = {}
    for user, item, time, kind in rows:
        rank = (not is_asked(kind), -weights[kind], time)
        if (user, item) not in best or rank < best[user, item][0]:
            best[user, item] = rank, (user, item, time, kind)
    return {line for _, line in best.values()}


@settings(max_examples=60)
@given(st.lists(EVENTS, min_size=1, max_size=40), st.sets(st.sampled_from(KINDS)), st.booleans())
def test_one_line_of_a_pair_is_kept_as_by_its_slow_twin(events, asked, has_weights):
    rows = [(f"u{u}", f"i{i}", t, kind) for u, i, t, kind in events]
    weights = {"view": 0.1, "cart": 0.5, "purchase": 1.0} if has_weights else dict.fromkeys(KINDS, 1.0)
    kinds = [kind for *_, kind in rows]
    log = make_log([row[:3] for row in rows]).with_columns(
        pl.Series(WEIGHT, [weights[kind] for kind in kinds]), pl.Series(IS_TARGET, [kind in asked for kind in kinds])
    )
    found = first_only(log)
    expected = _slowly_first(rows, lambda kind: kind in asked, weights)
    assert sorted(found.rows()) == sorted((u, i, t, weights[k], k in asked) for u, i, t, k in expected)
    by_moment = {(u, i, t): [] for u, i, t, _ in rows}
    for u, i, t, kind in rows:
        by_moment[u, i, t].append((kind in asked, weights[kind]))
    repeats = sorted(first_only(log, keep_repeats=True).rows())
    assert repeats == sorted((*key, max(v)[1], max(v)[0]) for key, v in by_moment.items())


@settings(max_examples=80)
@given(st.lists(EVENTS, min_size=1, max_size=80), st.sampled_from(WAYS), st.integers(1, 3))
def test_targets_are_of_their_kinds_and_histories_have_all(events, way, min_history):
    rows = {(f"u{u}", f"i{i}"): (t, kind) for u, i, t, kind in events}
    log = make_log([(*pair, t) for pair, (t, _) in rows.items()])
    log = log.with_columns(pl.Series(IS_TARGET, [kind == "purchase" for _, kind in rows.values()]))
    sequences = order(log, 0)
    assert IS_TARGET not in sequences.frame.columns
    try:
        split = way(sequences, min_history)
    except DataError:
        return
    learnt = {*learnt_of(split).select("user_id", "item_id").iter_rows()}
    for part, of_part in split.rows.items():
        for user, place in of_part.tolist():
            pair = sequences.users[user], sequences.items[int(sequences.offsets[user]) + place]
            assert rows[pair][1] == "purchase"
            assert place >= min_history
            assert (pair in learnt) == (part == "train")
    if way is leave_last_out:
        held = set(split.rows["test"][:, 0].tolist())
        for user, name in enumerate(sequences.users):
            begin, end = sequences.offsets[user : user + 2].tolist()
            asked = [n for n in range(min_history, end - begin) if sequences.is_target[begin + n]]
            own = [[p for u, p in split.rows[part].tolist() if u == user] for part in ("train", "validation", "test")]
            if end - begin < min_history + 2:
                assert own == [[], [], []]
            else:
                assert (user in held) == (len(asked) >= 2)
                assert own == ([asked[:-2], asked[-2:-1], asked[-1:]] if user in held else [asked, [], []])
                end = begin + asked[-2] if user in held else end
                assert {(name, item) for item in sequences.items[begin:end]} <= learnt


@pytest.mark.parametrize("split", ["leave-last-out", "user", "time-share"])
def test_a_shop_asks_for_purchases_after_views(tmp_path, split):
    kinds = {"view": 0.1, "cart": 0.5, "purchase": "buy"}
    data = prepare(_config(_written(tmp_path), kinds, targets=["purchase"], split=split))
    log = pl.read_csv(tmp_path / "log.csv")
    bought = {*log.filter(pl.col("event") == "purchase").select("user_id", "item_id").iter_rows()}
    for rows in (data.train, data.validation, data.test):
        assert len(rows)
        assert all((e.user_id, e.target) in bought for e in rows)
    assert any((e.user_id, item) not in bought for e in data.test for item in e.history)
    assert {*data.train_interactions[WEIGHT].unique()} == {0.1, 0.5, 1.0}
    assert any(line.startswith("interactions by weight: 1: 84, 0.5: 60, 0.1: 168") for line in data.summary)
    assert any("84 of 312 interactions are of a kind that targets may have" in line for line in data.summary)
    write_prepared(data, tmp_path / "data")
    again = read_prepared(tmp_path / "data")
    assert _same(_parts(data), _parts(again))
    longer = with_validation(again)
    assert longer.train_interactions[WEIGHT].null_count() == 0
    assert all((e.user_id, e.target) in bought for e in longer.train)


def test_returns_take_back_purchases_and_no_views(tmp_path):
    lines = ["1,7,5,view", "1,7,6,sale", "1,7,7,view", "1,7,8,refund", "1,8,9,sale", "1,9,9,view"]
    paths = _shop(tmp_path, "\n".join(["user_id,item_id,timestamp,what", *lines]) + "\n")
    kinds = {"view": 0.2, "sale": "buy", "refund": "return"}
    source = files(**paths, kind="what", kinds=kinds)
    rows = [("1", "7", 5, 0.2), ("1", "7", 7, 0.2), ("1", "8", 9, 1.0), ("1", "9", 9, 0.2)]
    assert source.interactions.rows() == rows


def test_a_file_for_each_kind_is_named_by_the_file(tmp_path):
    paths = _shop(tmp_path, "user_id,item_id,timestamp\n1,7,5\n")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "views.2024.csv").write_text("user_id,item_id,timestamp\n1,7,5\n1,8,6\n")
    (tmp_path / "events" / "orders.csv").write_text("user_id,item_id,timestamp\n1,7,9\n")
    own = {"interactions": tmp_path / "events", "items": paths["items"], "kind": "file-name"}
    source = files(**own, kinds={"views": 0.1, "orders": "buy"})
    assert sorted(source.interactions.rows()) == [("1", "7", 5, 0.1), ("1", "7", 9, 1.0), ("1", "8", 6, 0.1)]
    with pytest.raises(DataError, match=r"views.*column file-name: 'views' \(2 rows\) is not in `kinds`"):
        files(**own, kinds={"orders": "buy"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": {"a": 2}}, r"a: expected buy, return, drop or a weight from 0 to 1, got 2"),
        ({"kinds": {"a": "by"}}, r"got 'by'.*did you mean buy"),
        ({"kinds": {"a": float("nan")}}, r"a weight from 0 to 1, got nan"),
        ({"kinds": {"a": 0.5, "b": "return"}}, r"kinds: a return takes back lines that are buy"),
        ({"kinds": {"a": "buy", "b": 0}, "targets": ["b"]}, r"targets: 'b' is not among .* \('a'\)"),
        ({"kinds": {"a": "buy"}, "targets": ["c"]}, r"targets: 'c' is not among"),
    ],
)
def test_wrong_kinds_are_refused(tmp_path, settings, message):
    paths = _shop(tmp_path, "user_id,item_id,timestamp,k\n1,7,5,a\n")
    with pytest.raises(ValidationError, match=message):
        PrepareConfig.model_validate({"source": "files", **paths, "columns": {"kind": "k"}, **settings})


def test_targets_need_kinds_and_two_of_a_user(tmp_path):
    with pytest.raises(ValidationError, match=r"targets: 'purchase' is not among the interactions .* \(none\)"):
        _config(_written(tmp_path), targets=["purchase"])
    kinds, lines = {"view": 0.1, "cart": 0.5, "purchase": "buy"}, [f"u,i{n},{n},view" for n in range(9)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,event", *lines, "u,i9,9,purchase"]))
    with pytest.raises(DataError, match=r"no user has two interactions of the kinds in `targets`"):
        prepare(_config(tmp_path, kinds, targets=["purchase"]))
