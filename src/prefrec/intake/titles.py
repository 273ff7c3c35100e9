"""Make titles readable and unambiguous: articles, years, duplicates."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Literal

import polars as pl

from prefrec.data.titles import normal_title
from prefrec.errors import DataError

DuplicateTitles = Literal["error", "merge", "number"]
_ARTICLES = "The|A|An|Le|La|Les|Un|Une|Il|Lo|Gli|I|Una|Uno|El|Los|Las|Der|Die|Das|Ein|Eine|Den|Det|En|De|Het|O|Os|As"
_ROTATED = re.compile(rf"^((?:a\.?k\.?a\.?\s+)?)(.+), ((?:{_ARTICLES})|L')$")
_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\)\s*(?:\((?:V|TV|VG)\))?\s*$")
_PARENTHESES = re.compile(r"\(([^()]*)\)")
INVISIBLE = r"[\s\p{Cc}\p{Cf}]"
"""Invisible characters, such as a zero-width space (a regular expression for polars)."""


def restore_article(title: str) -> str:
    """Move a trailing article to the front: `Enfer, L'` → `L'Enfer`, `Piano, The` → `The Piano`."""
    match = _ROTATED.match(title)
    if not match:
        return title
    prefix, body, article = match.groups()
    return f"{prefix}{article}{body}" if article.endswith("'") else f"{prefix}{article} {body}"


def movie_title(raw: str) -> tuple[str, int | None]:
    """Split a MovieLens title into title and year (or None), and move articles to the front, also in parentheses.

    `Big Blue, The (Grand bleu, Le) (1988)` → (`The Big Blue (Le Grand bleu)`, 1988).
    """
    year = _YEAR.search(raw)
    text = " ".join((raw[: year.start()] if year else raw).split())
    head, parenthesis, rest = text.partition(" (")
    rest = _PARENTHESES.sub(lambda m: f"({restore_article(m[1].strip())})", parenthesis + rest)
    return restore_article(head) + rest, int(year[1]) if year else None


def movie_titles(raw: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return titles of MovieLens films by id, and a map from every id to the id that is kept.

    Items with the same title and year are one film, which keeps its smallest id. The year is added only to films that
    would otherwise share a title.
    """
    parsed = {i: movie_title(t) for i, t in raw.items()}
    films: defaultdict[tuple[str, int | None], list[str]] = defaultdict(list)
    for item, (title, year) in parsed.items():
        films[normal_title(title), year].append(item)
    kept_as = {i: min(same, key=id_order) for same in films.values() for i in same}
    namesakes = Counter(name for name, _ in films)
    kept = {item: parsed[item] for item in raw if kept_as[item] == item}
    titles = {i: f"{t} ({year})" if year and namesakes[normal_title(t)] > 1 else t for i, (t, year) in kept.items()}
    return titles, kept_as


def id_order(item_id: str) -> tuple[int, int, str]:
    """Return the sort key of an id: numbers by value, then texts."""
    return (0, int(item_id), item_id) if item_id.isdecimal() else (1, 0, item_id)


def resolve_duplicates(items: pl.DataFrame, how: DuplicateTitles) -> tuple[pl.DataFrame, dict[str, str], list[str]]:
    """Make titles unique.

    Args:
        items: `item_id, title, …`.
        how: what to do with ids that share a title (by `normal_title`). `merge`: keep only the smallest id. `number`:
            call the others `Title (2)`. `error`: raise DataError.

    Returns:
        The items, a map from merged ids to kept ids, and notes.
    """
    titles = dict(items.select("item_id", "title").iter_rows())
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for item, title in titles.items():
        groups[normal_title(title)].append(item)
    shared = [sorted(g, key=id_order) for g in groups.values() if len(g) > 1]
    renamed = {i: g[0] for g in shared for i in g[1:]}
    if not shared:
        return items, {}, []
    if how == "error":
        first = "; ".join(f"{titles[g[0]]!r} is the title of {', '.join(g[:4])}" for g in shared[:3])
        raise DataError(
            f"{len(shared)} titles belong to more than one item: {first}. A language model identifies items by "
            "title: choose --duplicate-titles merge (they are the same item) or number (call the second 'Title (2)'; "
            "`duplicate_titles` in a recipe)"
        )
    if how == "merge":
        kept = items.filter(~pl.col("item_id").is_in(list(renamed)))
        return kept, renamed, [f"{len(renamed)} items with the title of another item were merged into it"]
    used = set(groups)
    for first_id, *rest in shared:
        number = 2
        for item in rest:
            while normal_title(f"{titles[first_id]} ({number})") in used:
                number += 1
            titles[item] = f"{titles[first_id]} ({number})"
            used.add(normal_title(titles[item]))
    numbered = items.with_columns(pl.Series("title", list(titles.values())))
    return numbered, {}, [f"{len(renamed)} items with the title of another item were numbered, as in 'Title (2)'"]
