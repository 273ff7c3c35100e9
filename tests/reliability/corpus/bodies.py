"""Bodies of HTTP requests: no JSON, wrong fields, limits, names that stand for nothing."""

# ruff: noqa: E501  # a case a line is a table that can be read

from reliability.corpus.case import posted

ASKED = {"history": ["i3"], "candidates": ["i4", "i5"]}

CASES = [
    posted("/v1/rank", b"", "nothing", "body: Field required"),
    posted("/v1/rank", b"{", "half an object", "JSON"),
    posted("/v1/rank", b"\xff\xfe", "not UTF-8", "body"),
    posted("/v1/rank", b"[" * 100_000, "nested without end", "body"),
    posted("/v1/rank", b" " * (1 << 19), "too long", "262144"),
    posted("/v1/rank", {}, "an empty object", "body.history: Field required"),
    posted("/v1/rank", ASKED | {"history": ["x" * 513]}, "a name too long", "at most 512 characters"),
    posted("/v1/rank", ASKED | {"history": ["i3"] * 201}, "a history too long", "body.history: List should have at most 200 items"),
    posted("/v1/rank", ASKED | {"extra": 1}, "a field too many", "body.extra: Extra inputs are not permitted"),
    posted("/v1/rank", ASKED | {"history": ["Cold Heet"]}, "a title misspelt", "no item with title or id 'Cold Heet' among 60; similar: Cold Heat"),
    posted("/v1/rank", ASKED | {"candidates": ["i4", "i4"]}, "a candidate twice", "occurs twice among the candidates; give every item once"),
    posted("/v1/rank", ASKED | {"ranker": "../../sft"}, "a ranker outside of the run", "no ranker '../../sft': expected one of s-dpo, dpo, sft, zero-shot"),
    posted("/v1/rank", b'{"history": ["\\ud800"], "candidates": ["i4"]}', "half a character", "body.history.0"),
    posted("/v1/rank", b'{"history": [NaN], "candidates": ["i4"]}', "NaN", "body.history.0"),
    posted("/v1/rank", b'{"history": [], "candidates": [' + b"1" * 5000 + b"]}", "a number without end", "body"),
    posted("/v1/explain", ASKED | {"item": "i9"}, "an item that is no candidate", "is not among the candidates"),
    posted("/v1/explain", {"history": ["i3"] * 201, "item": "i9"}, "a history too long", "body.history: List should have at most 200 items"),
    posted("/v1/recommend", {"history": ["i3"], "k": 0}, "no place", "body.k: Input should be greater than or equal to 1"),
]  # fmt: skip
