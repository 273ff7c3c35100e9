"""Titles of research data sets."""

from __future__ import annotations

from prefrec_lab.datasets.titles import is_blank


def test_a_title_without_a_visible_character_is_blank() -> None:
    assert all(map(is_blank, ["", " ", "\u200b\u00a0", "\ufeff\u00ad\t"]))
    assert not any(map(is_blank, ["0", "\u200bHeat", "…"]))
