"""Titles: what no title may contain, and the form in which titles are compared."""

from __future__ import annotations

import re
import unicodedata

UNSAFE = r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
"""Control characters, and those that change the direction of text: they could alter what a terminal or page shows."""


def safe_title(title: str) -> str:
    """Return a title without `UNSAFE` characters, as in a `Catalogue`."""
    return re.sub(UNSAFE, "", title)


def normal_title(title: str) -> str:
    """Return the form in which titles are compared: NFKC, casefolded, single spaces, no `UNSAFE` characters."""
    title = safe_title(" ".join(title.split()))
    if title.isascii():
        return " ".join(title.split()).casefold()
    # Casefolding can undo the normalisation, so it is repeated.
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold()).split())
