"""Answers as tables, captions and plain values."""

import polars as pl

from prefrec.recommend.answers import Effect, Explanation, Ranked, Related, Rows
from prefrec.recommend.explain import Reasons

RANKED = [Ranked(1, "i7", "Heat", 0.5), Ranked(2, "i3", "Alien", 0.25)]
EFFECTS = [Effect("i1", "Emma", 0.5, {"words": 0.5, "counts": 0.0}), Effect("i2", "Opus", -0.25, {"words": 0.25})]


def explanation(effects=(), not_read=0, **changes):
    reasons = {"method": "contributions", "score": 1.23456, "effects": [], "rest": None}
    return Explanation(effects, "blend", ("i7", "Heat"), Reasons(**reasons | changes), not_read)


def test_rows_are_a_frame_in_their_order():
    frame = Rows(RANKED).frame()
    assert frame.columns == ["rank", "item_id", "title", "score"]
    assert frame.rows() == [(1, "i7", "Heat", 0.5), (2, "i3", "Alien", 0.25)]
    empty = Rows([]).frame()
    assert (empty.schema, len(empty)) == (frame.schema, 0)


def test_similar_items_say_by_what_above_their_table():
    similar = Related(RANKED, "EASE")
    assert (similar.by, [*similar]) == ("EASE", RANKED)
    assert repr(similar) == f"by EASE\n{Rows(RANKED)!r}"


def test_an_explanation_has_a_column_per_part():
    assert explanation(EFFECTS).frame().to_dicts() == [
        {"item_id": "i1", "title": "Emma", "effect": 0.5, "words": 0.5, "counts": 0.0},
        {"item_id": "i2", "title": "Opus", "effect": -0.25, "words": 0.25, "counts": None},
    ]
    empty = explanation().frame()
    assert (empty.schema, len(empty)) == ({"item_id": pl.String, "title": pl.String, "effect": pl.Float64}, 0)


def test_an_explanation_is_plain_values():
    assert explanation(EFFECTS[:1], 2, rest=0.5).to_dict() == {
        "ranker": "blend",
        "item_id": "i7",
        "title": "Heat",
        "score": 1.23456,
        "method": "contributions",
        "rest": 0.5,
        "not_explained": 0,
        "not_read": 2,
        "history": [{"item_id": "i1", "title": "Emma", "effect": 0.5, "parts": {"words": 0.5, "counts": 0.0}}],
    }


def test_the_caption_says_what_effects_are():
    effects = [Effect("i1", "Emma", 0.5)]
    for changes, said in {
        (): "the effects add up to it",
        (("rest", 0.0),): "the effects add up to it",
        (("rest", -0.5),): "the effects with -0.5 that does not depend on the history add up to it",
        (("rest", 0.12345),): "the effects with +0.123 that does not depend on the history add up to it",
        (("method", "leave-one-out"),): "effect: the score with the item − without it, oldest item first",
    }.items():
        first, _, rows = repr(explanation(effects, **dict(changes))).partition("\n")
        assert first == f"blend: Heat has the score 1.235; {said}"
        assert [line.split()[3] for line in rows.splitlines() if "i1" in line] == ["Emma"]
    older = "; 3 older items are not read"
    assert repr(explanation(effects, 3)).partition("\n")[0].endswith(f"add up to it{older}")
    left = f"; the effects of 7 older items are not measured{older}"
    assert repr(explanation(effects, 3, not_explained=7)).partition("\n")[0].endswith(left)
