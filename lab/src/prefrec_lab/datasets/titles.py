"""Check titles in research data sets."""

from __future__ import annotations

import unicodedata


def is_blank(title: str) -> bool:
    """Return True if a title has no visible character."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in title)
