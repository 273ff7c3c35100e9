"""The texts that Chat-REC sends to a language model."""

from __future__ import annotations

from collections.abc import Sequence

WORDS = {
    "movies": ("movies", "watched"),
    "books": ("books", "read"),
    "music": ("artists", "listened to"),
    "generic": ("items", "took"),
}
"""Domain → words for its items, and for what users do with them."""
REASON = "Reason:"


def question(profile: Sequence[str], history: Sequence[str], candidates: Sequence[str], domain: str) -> str:
    """Return the first message: the profile, the history (titles, oldest first) and the candidates to order."""
    things, took = WORDS.get(domain, WORDS["generic"])
    parts = [
        f"You recommend {things} to one user. Another recommender has picked the candidates below; choose among them "
        "only, and copy their titles exactly."
    ]
    if profile:
        parts.append("The user:\n" + "\n".join(f"- {line}" for line in profile))
    if history:
        parts.append(f"The user {took}, oldest first:\n" + "\n".join(f"- {title}" for title in history))
    parts.append("Candidates:\n" + numbered(candidates))
    parts.append(
        "Order the candidates from the best to the worst for this user. Answer with a numbered list of titles, one a "
        f"line and nothing else in the line, then one line that begins with {REASON}"
    )
    return "\n\n".join(parts)


def refinement(text: str, current: Sequence[str]) -> str:
    """Return a later message: what the user says, with the current list."""
    return (
        f"{text}\n\n(Your list at present:\n{numbered(current)}\nWhere I ask for another choice or order, answer "
        f"with a new numbered list of titles from the candidates, then a line that begins with {REASON} Else answer "
        "in words.)"
    )


def extension(candidates: Sequence[str]) -> str:
    """Return a later message with more candidates."""
    return (
        f"Here are other candidates:\n{numbered(candidates)}\n\nOrder these from the best to the worst for me, in "
        "the same form."
    )


def numbered(titles: Sequence[str]) -> str:
    """Return the titles as a list, numbered from 1."""
    return "\n".join(f"{n}. {title}" for n, title in enumerate(titles, start=1))
