"""Rules of recommendations, and their answers by any ranker, against plain loops."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, UnknownUserError
from prefrec.errors import DataError
from prefrec.rankers.base import Recommendation
from prefrec.rankers.baselines import PopularityRanker
from prefrec.recommend.new_items import NewItems
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import (
    LoggedUsers,
    RulesError,
    Selection,
    answer_all,
    best_items,
    logged_users,
    user_ids,
)
from prefrec.recommend.related import related_items
from prefrec.recommend.rules import Rules

GENRES = ["Comedy", "Drama", None, "Comedy"] * 3
ITEMS = pl.DataFrame(
    [(f"i{n}", f"Title {n}", genre, 1980.0 + 2 * n, ["a"]) for n, genre in enumerate(GENRES)],
    schema=["item_id", "title", "genre", "year", "tags"],
    orient="row",
)
CATALOGUE = Catalogue(ITEMS)
USERS = ["10", "9", "b", "B", "é", "𝄞", "ﬁ"]


class ByNumber:
    """Scores items by the number in their id, modulo 7, and notes what it was asked."""

    name = "by number"

    def __init__(self):
        self.asked = []

    def score(self, examples):
        self.asked += examples
        rows = [[int(i[1:]) % 7 for i in e.candidates] for e in examples]
        width = max(map(len, rows))
        return np.array([row + [-np.inf] * (width - len(row)) for row in rows], float)


class OfCatalogue:
    """Scores items as `ByNumber` does, and answers equal scores in the order of the catalogue, as a search does."""

    def recommend(self, history, k, *, without=(), max_calls=None, logps=None):
        kept = [item for item in ITEMS["item_id"] if item not in without]
        found = sorted(kept, key=lambda item: -(int(item[1:]) % 7))[:k]
        scores = np.array([int(item[1:]) % 7 for item in found], np.float32)
        return Recommendation(found, scores, True, "search")


def popular_by(ids):
    """A popularity in this order."""
    return Popular("popularity", ids, np.arange(len(ids), 0.0, -1))


def slow(rules, history, seen, k, popular):
    """The best ids, by a loop over all items: an empty history and equal scores by popularity."""
    kept, counts, allowed = [], Counter(), []
    order = {item: n for n, item in enumerate(popular.ids if popular else ITEMS["item_id"])}

    def key(row):
        by_score = 0 if popular and not history else -(int(row["item_id"][1:]) % 7)
        return by_score, order[row["item_id"]]

    for row in sorted(ITEMS.iter_rows(named=True), key=key):
        item = row["item_id"]
        if item in seen and rules.get("exclude_seen", True):
            continue
        if item not in rules.get("allow", ITEMS["item_id"]) or item in rules.get("deny", []):
            continue
        if "where" in rules and not (row["genre"] == "Comedy" and row["year"] > 1985):
            continue
        allowed.append((row, rules.get("boost", {}).get("genre", {}).get(row["genre"], 1)))
    moved = sorted(enumerate(allowed, 1), key=lambda placed: (placed[0] / placed[1][1], -placed[1][1], placed[0]))
    for _, (row, _) in moved:
        item, group = row["item_id"], row.get(rules.get("per"))
        if group is not None and counts[group] >= rules["at_most"]:
            continue
        counts[group] += 1
        kept.append(item)
    return kept[:k]


@given(
    seen=st.sets(st.sampled_from(ITEMS["item_id"].to_list())),
    k=st.integers(1, 13),
    popular=st.none() | st.permutations(ITEMS["item_id"].to_list()).map(popular_by),
    rules=st.fixed_dictionaries(
        {},
        optional={
            "exclude_seen": st.booleans(),
            "allow": st.just(["i0", "i3", "i4", "i6", "i11", "gone"]),
            "deny": st.just(["i6", "gone"]),
            "where": st.just("genre = 'Comedy' and year > 1985"),
            "at_most": st.integers(1, 2),
            "boost": st.sampled_from([{"genre": {"Comedy": 2.5}}, {"genre": {"Drama": 4, "Comedy": 0.5}}]),
        },
    ),
)
def test_answers_equal_a_loop_over_all_items(seen, k, popular, rules):
    rules |= {"per": "genre"} if "at_most" in rules else {}
    selection = Selection(CATALOGUE, Rules(**rules), k, popular)
    questions = [selection.question(["i1"], seen), selection.question([], ())]
    answers = answer_all(ByNumber(), questions)
    want = [slow(rules, ["i1"], seen, k, popular), slow(rules, [], set(), k, popular)]
    assert [a.item_ids for a in answers] == want
    assert [best_items(OfCatalogue(), question, None, None).item_ids for question in questions] == want
    for answer in answers[: 1 if popular else 2]:
        assert answer.logps.tolist() == [int(i[1:]) % 7 for i in answer.item_ids]


NEW = ["i2", "i5", "i7", "i10"]
"""Items without interactions; `ByNumber` tells them apart."""
SOLD = PreparedData(CATALOGUE, [], [], [], make_log([("u", i, 0) for i in CATALOGUE.ids if i not in NEW]), {})


def slow_with_new(rules, seen, k, popular, every):
    """The best ids after i1, place by place, where at least every n-th is new."""
    free = {name: rule for name, rule in rules.items() if name not in ("at_most", "per")}
    main = slow(free, ["i1"], seen, 99, popular)
    allowed = [item for item in NEW if item in rules.get("allow", NEW)]
    fresh = slow(free | {"allow": allowed}, ["i1"], seen, 99, popular)
    genre = dict(zip(ITEMS["item_id"], ITEMS["genre"], strict=True))
    kept = []

    def is_free(item):
        same = [other for other in kept if genre[other] == genre[item]]
        is_full = "at_most" in rules and genre[item] is not None and len(same) >= rules["at_most"]
        return item not in kept and not is_full

    for place in range(1, k + 1):
        is_due = place // every > sum(item in NEW for item in kept)
        kept += [item for item in [*(fresh if is_due else []), *main] if is_free(item)][:1]
    return kept


@given(
    seen=st.sets(st.sampled_from(ITEMS["item_id"].to_list())),
    k=st.integers(1, 13),
    popular=st.none() | st.permutations(ITEMS["item_id"].to_list()).map(popular_by),
    every=st.integers(1, 5),
    rules=st.fixed_dictionaries(
        {},
        optional={
            "exclude_seen": st.booleans(),
            "allow": st.just(["i0", "i2", "i4", "i6", "i10", "gone"]),
            "deny": st.just(["i7", "gone"]),
            "at_most": st.integers(1, 2),
            "boost": st.sampled_from([{"genre": {"Comedy": 2.5}}, {"genre": {"Drama": 4, "Comedy": 0.5}}]),
        },
    ),
)
def test_places_for_new_items_equal_a_loop_over_places(seen, k, popular, every, rules):
    rules |= {"per": "genre"} if "at_most" in rules else {}
    selection = Selection(CATALOGUE, Rules(**rules, new_every=every), k, popular, new=NewItems(SOLD))
    question = selection.question(["i1"], seen)
    want = slow_with_new(rules, seen, k, popular, every)
    (answer,) = answer_all(ByNumber(), [question])
    fresh = [item for item in NEW if item not in selection.excluded]
    if (
        len(fresh) != 1
    ):  # the score of one item does not tell it apart, and its similarity of titles is another number
        assert answer.logps.tolist() == [int(i[1:]) % 7 for i in answer.item_ids]
    assert answer.item_ids == want
    assert best_items(OfCatalogue(), question, None, None).item_ids == want


def test_without_new_items_or_the_rule_answers_are_as_before():
    plain = Selection(CATALOGUE, Rules(), 9).question(["i1"], [])
    all_sold = PreparedData(CATALOGUE, [], [], [], make_log([("u", i, 0) for i in CATALOGUE.ids]), {})
    by_request = Selection(CATALOGUE, Rules(new_every=0), 9, new=NewItems(SOLD, 2)).question(["i1"], [])
    nothing_new = Selection(CATALOGUE, Rules(new_every=2), 9, new=NewItems(all_sold)).question(["i1"], [])
    of_recipe = Selection(CATALOGUE, Rules(), 9, new=NewItems(SOLD, 2)).question(["i1"], [])
    want, *same, other = answer_all(ByNumber(), [plain, by_request, nothing_new, of_recipe])
    assert [answer.item_ids for answer in same] == [want.item_ids, want.item_ids]
    assert other.item_ids != want.item_ids
    assert sum(item in NEW for item in other.item_ids[:4]) == 2


def test_only_a_log_tells_what_is_new():
    exported = PreparedData(CATALOGUE, [], [], [], make_log([]), {})
    with pytest.raises(RulesError, match="new_every: only a log tells which items are new"):
        Selection(CATALOGUE, Rules(new_every=10), 10, new=NewItems(exported))


def test_a_ranker_is_asked_once_about_what_may_be_recommended():
    ranker, selection = ByNumber(), Selection(CATALOGUE, Rules(deny=["i5"]), 3)
    asked = [selection.question(["i1"], ["i1"]), selection.question([], ITEMS["item_id"].to_list())]
    first, second = answer_all(ranker, asked)
    assert [(e.user_id, e.history, len(e.candidates)) for e in ranker.asked] == [(None, ("i1",), 11)]
    assert len(first.item_ids) == 3
    assert (second.item_ids, second.exact, second.method) == ([], True, "exact")


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "3", None])
def test_k_is_a_whole_number_from_1(k):
    with pytest.raises(RulesError, match="k: expected a whole number of at least 1, got"):
        Selection(CATALOGUE, Rules(), k)


def test_ids_of_users_are_texts_or_whole_numbers():
    assert user_ids(7) == user_ids(["7"]) == user_ids(pl.Series([7])) == user_ids({np.int64(7): []}) == ["7"]
    for users in ([1.0], 1.5, [["1"]], True, [None], pl.Series([1.5])):
        with pytest.raises(
            DataError, match=r"users: a user's id is text or a whole number, not (float|list|bool|None)"
        ):
            user_ids(users)
    with pytest.raises(DataError, match=r"user: .* not list; recommend_all\(users=\[…\]\) answers several users"):
        user_ids(["1", "2"], "user")
    with pytest.raises(DataError, match=r"user: the id 'u\\udcff' is not valid UTF-8"):
        user_ids("u\udcff", "user")


@given(
    learnt=st.lists(
        st.tuples(st.sampled_from(USERS), st.sampled_from(CATALOGUE.ids), st.integers(0, 3)), max_size=30
    ),
    later=st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(CATALOGUE.ids), st.integers(0, 9)), max_size=9),
    beside=st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(CATALOGUE.ids), st.none()), max_size=9),
)
def test_users_are_found_as_in_the_whole_log(learnt, later, beside):
    log, held_out, touched = make_log(learnt), make_log(later), make_log(beside)
    settings = {"config": {"history_length": 2}}
    data = PreparedData(CATALOGUE, [], [], [], log, settings, None, held_out, touched=touched)
    users = LoggedUsers(data)
    assert users.ids == sorted({user for user, *_ in (*learnt, *later, *beside)})
    for user in USERS:
        if user in users.ids:
            assert users.past(user) == logged_users(data, [user])[user]
            continue
        with pytest.raises(UnknownUserError) as found:
            users.past(user)
        with pytest.raises(UnknownUserError) as want:
            logged_users(data, [user])
        assert str(found.value) == str(want.value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"where": 'genre = "Comedy"'},
            'unable to find column "Comedy".*item_id, title, genre, year, tags; put text',
        ),
        ({"where": "genre and"}, "where 'genre and': .*; the catalogue has the columns item_id, title"),
        ({"where": "genre"}, "must be of type `Boolean`"),
        ({"where": "year > 3000"}, "exclude every item of the catalogue"),
        ({"per": "brand", "at_most": 1}, "per 'brand': the catalogue has no such column"),
        ({"per": "tags", "at_most": 1}, "per 'tags': the catalogue has no such column of single values"),
        ({"boost": {"brand": {"Acme": 2}}}, "boost 'brand': the catalogue has no such column of single.*genre, year"),
        ({"boost": {"tags": {"a": 2}}}, "boost 'tags': the catalogue has no such column of single values"),
    ],
)
def test_rules_that_do_not_fit(rules, message):
    with pytest.raises(DataError, match=message):
        Selection(CATALOGUE, Rules(**rules), 10)


PLAIN = [
    "genre = 'Comedy' and year > 1985",
    "title in ('a (b', 'it''s') or not (year > 1990)",
    "title <> 'ABS(1)' AND (\"year\" > 1 OR `genre` IS NULL)",
    "year > 1990 or (genre = 'Comedy' and(year > 1985))",
    "year between (1985) and (1995)",
    "title like ('Title 1%') or title ilike('title 2%')",
    "case when (year > 1990) then (genre = 'Comedy') else (year > 1985) end",
    "case(genre) when('Comedy') then(true) else(false) end",
]
HIDDEN = [
    "abs(year) > 1", "ABS (year) > 1", '"abs"(year) > 1', "`abs`(year) > 1", "tags[1](2) = 1", "year > 1 -- x",
    "year > 1 /* x */", "year > 1 # x", "title = e'x'", "title = @'x'", "title = &'x'", "title = '\\\\' or year = 1",
    "title = $$x$$",
]  # fmt: skip


@pytest.mark.parametrize("where", PLAIN)
def test_conditions_without_functions_are_plain(where):
    kept = Selection(CATALOGUE, Rules(where=where), 3).excluded
    assert Selection(CATALOGUE, Rules(where=where), 3, functions=False).excluded == kept


@pytest.mark.parametrize("where", HIDDEN)
def test_functions_and_what_could_hide_them_are_refused(where):
    with pytest.raises(RulesError, match="where: functions, comments, backslashes"):
        Selection(CATALOGUE, Rules(where=where), 3, functions=False)


def test_a_condition_is_not_true_for_nan():
    ids = ["a", "b", "c", "d"]
    frame = pl.DataFrame({"item_id": ids, "title": ids, "price": [5.0, float("nan"), 20.0, None]})
    frame = frame.with_columns(pl.col("price").cast(pl.Float32).alias("weight"))

    def kept(where):
        return {*ids} - Selection(Catalogue(frame), Rules(where=where), 3).excluded

    assert kept("price > 10") == kept("weight > 10") == {"c"}
    assert kept("price < 10") == {"a"}
    assert kept("price is not null") == {"a", "c"}
    assert kept("price <> 5") == {"c"}


@pytest.mark.parametrize("word", ["between", "like", "ilike", "is", "case", "when", "then", "else"])
def test_keywords_before_a_parenthesis_call_nothing(word):
    for call in ("(title)", "(title, 'x')", "()", " (year) > 1"):
        with pytest.raises(RulesError, match=r"^where .*; the catalogue has the columns"):
            Selection(CATALOGUE, Rules(where=f"{word}{call}"), 3, functions=False)


def test_functions_are_allowed_in_python():
    assert len(Selection(CATALOGUE, Rules(where="abs(year) > 1990"), 3).excluded) == 6


def test_a_limit_needs_a_column_and_a_column_a_limit():
    for rules in (Rules(at_most=1), Rules(per="genre")):
        with pytest.raises(RulesError, match="at_most, per: give both or neither"):
            Selection(CATALOGUE, rules, 3)


@given(
    scores=st.lists(st.sampled_from([0.0, -1.0, -1.5, -4.0]), min_size=1, max_size=12),
    order=st.permutations(ITEMS["item_id"].to_list()),
    is_popular=st.booleans(),
    at_most=st.none() | st.integers(1, 2),
    k=st.integers(1, 5),
)
def test_a_ranking_is_cut_to_the_limits_and_ties_go_by_popularity(scores, order, is_popular, at_most, k):
    ranking = list(zip(sorted(scores, reverse=True), ITEMS["item_id"], strict=False))
    best = Recommendation([item for _, item in ranking], np.array([s for s, _ in ranking], np.float32), True, "exact")
    rules = Rules(at_most=at_most, per="genre") if at_most else Rules()
    found = (
        Selection(CATALOGUE, rules, k, popular_by(order) if is_popular else None).question(["i1"], ()).answer(best)
    )
    if is_popular:
        ranking.sort(key=lambda row: (-row[0], order.index(row[1])))
    kept, counts = [], Counter()
    for score, item in ranking:
        group = GENRES[int(item[1:])]
        counts[group] += 1
        if not (at_most and group is not None and counts[group] > at_most):
            kept.append((item, score))
    assert [*zip(found.item_ids, found.logps.tolist(), strict=True)] == kept[:k]
    assert (found.exact, found.method) == (True, "exact")


class Deep:
    """A ranker of the catalogue that has 12 items of one group before the others, and notes how deep it was asked."""

    def __init__(self, ids):
        self.ids, self.depths = ids, []

    def recommend(self, history, k, *, without=(), max_calls=None, logps=None):
        self.depths.append((tuple(history), k, tuple(without), max_calls, logps))
        found = [item for item in self.ids if item not in without][:k]
        return Recommendation(found, -np.arange(len(found), dtype=np.float32), True, "exact")


def test_a_limit_per_group_asks_deeper_until_it_is_met():
    ids = [f"a{n}" for n in range(12)] + ["b0", "b1", "c0"]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": ids, "brand": [item[0] for item in ids]}))
    one_each = Rules(at_most=1, per="brand")
    ranker = Deep(ids)
    answer = best_items(ranker, Selection(catalogue, one_each, 2).question(["x"], {"b0"}), 7, "known")
    assert answer.item_ids == ["a0", "b1"]
    assert ranker.depths == [(("x",), depth, ("b0",), 7, "known") for depth in (8, 32)]
    ranker = Deep(ids)
    assert best_items(ranker, Selection(catalogue, one_each, 4).question(["x"], ()), None, None).item_ids == [
        *("a0", "b0", "c0")
    ]
    assert [asked[1] for asked in ranker.depths] == [16]
    ranker = Deep(ids)
    assert best_items(ranker, Selection(catalogue, Rules(), 4).question(["x"], ()), None, None).item_ids == ids[:4]
    assert [asked[1] for asked in ranker.depths] == [4]


def test_a_search_is_asked_deeper_until_all_ties_of_the_last_place_are_known():
    ids = [f"i{n}" for n in range(12)]
    asked = []

    class Equal(OfCatalogue):
        exact = True

        def recommend(self, history, k, **given):
            asked.append(k)
            return Recommendation(ids[:k], np.zeros(len(ids[:k]), np.float32), self.exact, "search")

    question = Selection(CATALOGUE, Rules(), 2, popular_by(ids[::-1])).question(["i1"], ())
    assert best_items(Equal(), question, None, None).item_ids == ["i11", "i10"]
    assert asked == [3, 12, 48]
    asked.clear()
    Equal.exact = False  # calls have run out, and would again
    assert best_items(Equal(), question, 5, None).item_ids == ["i2", "i1"]
    assert asked == [3]


def test_boosts_ask_a_ranker_as_deep_as_a_boosted_item_can_come_from():
    ids = [f"a{n}" for n in range(12)] + ["b0", "b1", "c0"]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": ids, "brand": [item[0] for item in ids]}))

    def asked(k, **rules):
        ranker, selection = Deep(ids), Selection(catalogue, Rules(**rules), k)
        answer = best_items(ranker, selection.question(["x"], ()), None, None)
        assert answer.logps.tolist() == [-ids.index(item) for item in answer.item_ids]
        return answer.item_ids, [depth for _, depth, *_ in ranker.depths]

    assert asked(2, boost={"item_id": {"a3": 3, "b1": 3}}) == (["a0", "a3"], [6])
    assert asked(4, boost={"brand": {"a": 0.5, "b": 2}}) == (["a0", "a1", "a2", "b0"], [16])
    both = {"boost": {"brand": {"b": 2}}, "at_most": 1, "per": "brand"}
    assert asked(2, **both) == (["a0", "b0"], [16])
    assert asked(1, boost={"item_id": {"c0": 100}}) == (["c0"], [16])


def test_boosts_of_texts_numbers_and_unknown_values():
    frame = ITEMS.with_columns(new=pl.col("year") > 1990, count=pl.arange(12))
    boost = {
        "genre": {"Drama": 2, "Dramma": 9},
        "year": {"1980": 3, "1982.0": 5, "x": 9, "2050": 9},
        "count": {"0": 7, "0.0": 11},
        "new": {"true": 0.5},
        "item_id": {"i11": 13, "gone": 9},
        "title": {},
    }
    selection = Selection(Catalogue(frame), Rules(boost=boost), 3)
    assert selection.factors.tolist() == [3 * 77, 10, 1, 1, 1, 2, 0.5, 0.5, 0.5, 1, 0.5, 6.5]
    assert selection.unmatched == [
        ("genre", "Dramma"), ("year", "x"), ("year", "2050"), ("item_id", "gone")
    ]  # fmt: skip
    assert Selection(CATALOGUE, Rules(), 3).factors is None


def test_boosts_tell_neighbouring_large_ids_apart():
    ids, large = ["a", "b", "c"], 2**53
    frame = pl.DataFrame({"item_id": ids, "title": ids, "code": [large, large + 1, 7]})
    boost = {"code": {str(large + 1): 2, "7.0": 3, "7.5": 9, "1e400": 9, "nan": 9, "x": 9}}
    selection = Selection(Catalogue(frame), Rules(boost=boost), 3)
    assert selection.factors.tolist() == [1, 2, 3]
    assert selection.unmatched == [("code", name) for name in ("7.5", "1e400", "nan", "x")]
    assert Selection(Catalogue(frame), Rules(boost={"code": {}}), 3).factors.tolist() == [1, 1, 1]


def test_an_empty_history_is_answered_by_popularity_without_the_ranker():
    popular = popular_by(["i3", "i1", "i2", "i0"])
    ranker = Deep([])
    answer = best_items(ranker, Selection(CATALOGUE, Rules(), 2, popular).question([], {"i1"}), None, None)
    assert (answer.item_ids, answer.logps.tolist(), answer.exact, answer.method) == (
        ["i3", "i2"],
        [4, 2],
        True,
        "popularity",
    )
    assert ranker.depths == []


def test_rankers_that_ignore_histories_answer_an_empty_one_themselves():
    log = pl.DataFrame({"user_id": ["u", "v", "u"], "item_id": ["i5", "i5", "i2"], "timestamp": [1, 2, 3]})
    asked = [Selection(CATALOGUE, Rules(), 2, popular_by(ITEMS["item_id"].to_list())).question([], ())]
    (own,) = answer_all(PopularityRanker.fit(log), asked)
    (known,) = answer_all(ByNumber(), asked)
    assert (own.item_ids, own.method) == (["i5", "i2"], "exact")
    assert (known.item_ids, known.method) == (["i0", "i1"], "popularity")


def test_similar_items_have_a_similarity_above_0():
    (item,) = ["i7"]  # 0 modulo 7, as i0 is
    found = related_items(ByNumber(), Selection(CATALOGUE, Rules(), 12).question([item], {item}))
    assert found.item_ids == ["i6", "i5", "i4", "i11", "i3", "i10", "i2", "i9", "i1", "i8"]
    assert found.logps.tolist() == [6, 5, 4, 4, 3, 3, 2, 2, 1, 1]


def test_a_boost_brings_no_item_among_similar_ones_that_is_not_similar():
    boost = {"item_id": {"i0": 100, "i8": 100}}  # 0 and 1 modulo 7
    found = related_items(ByNumber(), Selection(CATALOGUE, Rules(boost=boost), 3).question(["i7"], {"i7"}))
    assert (found.item_ids, found.logps.tolist()) == (["i8", "i6", "i5"], [1, 6, 5])


def test_items_without_a_score_are_not_answered():
    class Some(ByNumber):
        def score(self, examples):
            return np.where(super().score(examples) > 4, 1.0, -np.inf)

    (answer,) = answer_all(Some(), [Selection(CATALOGUE, Rules(), 9).question(["i1"], ())])
    assert (answer.item_ids, answer.logps.dtype) == (["i5", "i6"], np.float32)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("given", [None, True, False])
def test_seen_items_are_excluded_by_default_unless_the_data_keep_repeats(repeats, given):
    selection = Selection(CATALOGUE, Rules(exclude_seen=given), 3, repeats=repeats)
    excluded = not repeats if given is None else given
    assert set(selection.question(["i1"], ["i1", "i2"]).without) == ({"i1", "i2"} if excluded else set())
