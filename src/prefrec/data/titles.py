"""Titles: what no title may contain, and the form in which titles are compared."""

from __future__ import annotations

import re
import unicodedata

import polars as pl

UNSAFE = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
"""Control characters, and those that change the direction of text: they could alter what a terminal or page shows."""


_SPACE = r"[\t-\r\x1c-\x1f\x85]"
"""White space among the `UNSAFE` characters."""


def safe_title(title: str) -> str:
    """Return a title without `UNSAFE` characters."""
    return re.sub(UNSAFE, "", title)


def clean_titles(titles: pl.Expr) -> pl.Expr:
    """Return titles without `UNSAFE` characters, and with single spaces, none of them at the ends.

    `UNSAFE` characters are removed first, because spaces may stand between them and the end. White space among them
    separates words.
    """
    safe = titles.str.replace_all(_SPACE, " ").str.replace_all(UNSAFE, "")
    return safe.str.replace_all(r"\s+", " ").str.strip_chars()


def normal_title(title: str) -> str:
    """Return the form in which titles are compared: NFKC, casefolded, single spaces, no `UNSAFE` characters."""
    title = safe_title(" ".join(title.split()))
    if title.isascii():
        return " ".join(title.split()).casefold()
    # Casefolding can undo the normalisation, so it is repeated.
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold()).split())
