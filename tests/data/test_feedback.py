"""Rows and questions from ratings and impressions: against a slow twin, by hand, and the counts of MovieLens."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_logs import logs
from prefrec.data import RankingExample, feedback
from prefrec.data.feedback import Thresholds, preference_questions, rejected_rows, with_opinions
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare


@st.composite
def rated_logs(draw: st.DrawFn) -> pl.DataFrame:
    log = draw(logs(1, 6)).sort("user_id", "timestamp", "item_id")
    ratings = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, None]), min_size=len(log), max_size=len(log)))
    return log.with_columns(rating=pl.Series(ratings, dtype=pl.Float64))


def own(log: pl.DataFrame, user: str) -> list[tuple[str, float | None]]:
    return list(log.filter(pl.col("user_id") == user).select("item_id", "rating").iter_rows())


@given(rated_logs(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_rated_rows_are_those_of_the_obvious_way(log, negatives, length, least, seed):
    judged = with_opinions(log, log, Thresholds())
    rows = rejected_rows(judged, "rated", negatives, history_length=length, min_history=least, seed=seed)
    by_item = {(r.user_id, r.target): r for r in rows}
    assert len(by_item) == len(rows)
    for user in log["user_id"].unique(maintain_order=True):
        items = own(log, user)
        liked = [n for n, (_, rating) in enumerate(items) if rating == 5.0]
        for n in liked:
            # A history that ends at `end` belongs to the `AHEAD` interactions from there on.
            ways = {}
            for end in range(max(0, n - feedback.AHEAD + 1), n + 1):
                low = {i for i, r in items[end : end + feedback.AHEAD] if r is not None and r <= 2}
                if low and end >= least:
                    ways[tuple(i for i, _ in items[:end])[-length:]] = low
            row = by_item.pop((user, items[n][0]), None)
            if row is not None:
                rejected = set(row.candidates) - {row.target}
                assert rejected <= ways[row.history]
                assert len(row.candidates) - 1 == len(rejected) == min(negatives, len(ways[row.history]))
    assert not by_item
    assert rejected_rows(judged, "rated", negatives, history_length=length, min_history=least, seed=seed) == rows


def test_a_history_ends_anywhere_before_the_block_of_its_row():
    log = pl.DataFrame({"user_id": ["u"] * 200, "item_id": [f"i{n}" for n in range(200)], "rating": [5.0, 1.0] * 100})
    rows = rejected_rows(with_opinions(log, log, Thresholds()), "rated", 30, history_length=200)
    place = {f"i{n}": n for n in range(200)}
    assert {place[r.target] - len(r.history) for r in rows} == set(range(feedback.AHEAD))
    rejected = [place[i] - len(r.history) for r in rows if place[r.target] < 150 for i in r.candidates]
    assert {*rejected} == set(range(feedback.AHEAD))
    assert len(rows) == 100 - 1  # no history is left before the first item


def test_an_item_rejected_twice_is_one_candidate():
    log = pl.DataFrame({"user_id": ["u"] * 5, "item_id": [*"abbcb"], "rating": [3.0, 1.0, 1.0, 5.0, 1.0]})
    (row,) = rejected_rows(with_opinions(log, log, Thresholds()), "rated", 30, history_length=200)
    assert sorted(row.candidates) == ["b", "c"]
    shown = [None, ["x", "y", "x"]]
    log = pl.DataFrame({"user_id": ["u"] * 2, "item_id": ["a", "b"], "impressions": shown})
    (row,) = rejected_rows(log, "impressions", 30)
    assert sorted(row.candidates) == ["b", "x", "y"]


def test_a_user_s_draws_do_not_depend_on_others():
    rows = [(u, f"i{n}", n, 5.0 if n % 2 else 1.0) for u in ("a", "b") for n in range(40)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    judged = with_opinions(log, log, Thresholds())
    both = rejected_rows(judged, "rated", 3)
    assert [r for r in both if r.user_id == "b"] == rejected_rows(judged.filter(pl.col("user_id") == "b"), "rated", 3)
    assert both != rejected_rows(judged, "rated", 3, seed=1)
    assert {r.target_index for r in both} == {0, 1, 2, 3}  # anywhere: templates may show the candidates


def test_quantiles_are_each_user_s_own_of_the_training_part():
    users = ["few"] * 5 + ["many"] * 5 + ["same"] * 5 + ["none"]
    ratings = [1.0, 2.0, 3.0, 4.0, 5.0, *(100.0 * n for n in range(1, 6)), *[7.0] * 5, None]
    learn = pl.DataFrame({"user_id": users, "rating": ratings}).with_row_index("item_id")
    asked = [("few", 1.8, -1), ("few", 3.0, 0), ("few", 4.2, 1), ("many", 150.0, -1), ("many", 450.0, 1)]
    asked += [("many", None, 0), ("same", 7.0, 0), ("none", 9.0, 0), ("new", 9.0, 0)]
    log = pl.DataFrame(asked, schema=["user_id", "rating", "expected"], orient="row")
    found = with_opinions(log, learn, Thresholds(0.8, 0.2, "quantile"))
    assert found["opinion"].to_list() == log["expected"].to_list()
    assert found.columns == ["user_id", "rating", "expected", "opinion"]


def test_no_ratings_no_impressions():
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    told = r"need ratings, but the log has none; name their column with --columns.rating"
    with pytest.raises(DataError, match=told):
        with_opinions(log, log, Thresholds())
    with pytest.raises(DataError, match=r"the log has none; name the column with --columns.impressions"):
        rejected_rows(log, "impressions", 1)


def test_impressions_by_hand():
    shown = [["x", "y"], ["a", "x", "y", "z"], None, ["b", "x"]]
    log = pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["a", "b", "c", "d"], "impressions": shown})
    rows = rejected_rows(log, "impressions", 2, history_length=1)
    assert [(r.history, r.target) for r in rows] == [(("a",), "b"), (("c",), "d")]
    assert set(rows[0].candidates) < {"b", "x", "y", "z"}  # a is taken already
    assert len(rows[0].candidates) == 3
    assert set(rows[1].candidates) == {"d", "x"}  # b is taken already, and fewer than two are left
    assert rejected_rows(log, "impressions", 2, min_history=4) == []


def test_questions_by_hand():
    learn = pl.DataFrame({"user_id": ["u"] * 3 + ["v"], "item_id": list("abcd"), "rating": [1.0] * 4})
    ratings = [5.0, 5.0, 5.0, 1.0, 2.0, 3.0, None, 5.0, 5.0, 5.0, 1.0]
    held_out = pl.DataFrame({"user_id": [*"uuuuuuuvvww"], "item_id": [*"efghijklmno"], "rating": ratings})
    judged = with_opinions(held_out, learn, Thresholds())
    (question,) = preference_questions(learn, judged, {"u", "v"}, of_each=2, history_length=2)
    assert (question.user_id, question.history) == ("u", ("b", "c"))
    kinds = dict(zip(question.candidates, question.liked, strict=True))
    assert kinds == {"e": True, "f": True, "h": False, "i": False}
    assert question.example().target in {"e", "f"}
    assert [q.user_id for q in preference_questions(learn, judged, {"u", "v", "w"})] == ["u", "w"]


def test_an_item_that_was_judged_twice_is_one_candidate_with_the_first_opinion():
    learn = pl.DataFrame({"user_id": [*"u"], "item_id": [*"a"], "rating": [5.0]})
    ratings = [3.0, 5.0, 5.0, 1.0, 1.0, 5.0]
    held_out = pl.DataFrame({"user_id": [*"uuuuuu"], "item_id": [*"eefegg"], "rating": ratings})
    judged = with_opinions(held_out, learn, Thresholds())
    (question,) = preference_questions(learn, judged, {"u"})
    assert dict(zip(question.candidates, question.liked, strict=True)) == {"e": True, "f": True, "g": False}
    assert len(question.candidates) == 3


def test_scores_of_references_by_hand():
    learn = pl.DataFrame({"user_id": [*"uvwu"], "item_id": [*"aaab"], "rating": [5.0, 3.0, None, 1.0]})
    (found,) = feedback.mean_rating_scores(learn, [RankingExample("u", (), ("a", "b", "new"), "a")], shrink=2.0)
    assert found == pytest.approx([(8 + 2 * 3) / 4, (1 + 2 * 3) / 3, 3.0])


def slow_centred_mean(learn: pl.DataFrame, item: str, by: str, shrink: float) -> float:
    found, rows = [], learn.select("user_id", "item_id", "rating").rows()
    for user, of, rating in rows:
        own = [r for u, _, r in rows if u == user and r is not None]
        if of == item and rating is not None:
            below, same = sum(r < rating for r in own), sum(r == rating for r in own)
            found.append(rating - sum(own) / len(own) if by == "value" else (below + same / 2) / len(own) - 0.5)
    return sum(found) / (len(found) + shrink)


@given(rated_logs(), st.sampled_from(["value", "quantile"]), st.sampled_from([0.5, 5.0]))
def test_centred_means_are_those_of_the_obvious_way(log, by, shrink):
    items = log["item_id"].unique().sort().to_list()
    (found,) = feedback.centred_mean_scores(log, [RankingExample("u", (), (*items, "new"), items[0])], by, shrink)
    assert found == pytest.approx([*(slow_centred_mean(log, item, by, shrink) for item in items), 0.0])


@pytest.mark.shared_data
def test_movielens_has_the_users_and_rows_that_are_quoted(shared_data):
    """491 users have both kinds in the last 20% of their logs."""
    data = prepare(PrepareConfig(path=shared_data / "movielens-100k", split="time-share", history_length=30))
    learn = data.train_interactions
    assert len(learn) == 79_755
    rows = rejected_rows(with_opinions(learn, learn, Thresholds()), "rated", 3, history_length=30, min_history=3)
    assert (len(rows), len({e.user_id for e in rows})) == (11_430, 834)
    judged = with_opinions(data.held_out_interactions, learn, Thresholds())
    asked = [preference_questions(learn, judged, {e.user_id for e in data.split(p)}) for p in ("validation", "test")]
    assert [len(questions) for questions in asked] == [99, 392]
