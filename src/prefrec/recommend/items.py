"""Resolve the names that clients give to items: ids, titles, or similar texts."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from heapq import nlargest

from rapidfuzz import fuzz, process

from prefrec.data import Catalogue
from prefrec.data.titles import normal_title
from prefrec.errors import DataError
from prefrec.recommend.rules import ById, Item, ItemName, UnknownName

Names = Sequence[ItemName]
NEAR, SEARCHED = 3, 5
"""Number of similar titles for an unknown title, and number of unknown titles per request that get them: each needs a
search of the catalogue."""
ALIKE = 20
"""Maximum number of items listed for a title that several items have."""
ARTICLES = frozenset({"the", "a", "an"})
"""Words that are ignored in comparisons. Articles of other languages are words of English titles."""
COMPARED, BLOCK = 64, 2_000
"""Number of characters of a name to compare with titles, and number of titles to compare at a time (a few ms)."""
NEAR_ENOUGH = 60.0
"""Minimum similarity of a similar title, out of 100 (rapidfuzz's weighted ratio)."""


class UnknownItemsError(DataError):
    """A request's names match no item, or several items."""

    def __init__(self, message: str, unknown: list[UnknownName]) -> None:
        super().__init__(message)
        self.unknown = unknown


def _distance(wanted: str, bare: str) -> tuple[bool, ...]:
    """Order titles that hold a text: equal, begin with it, hold it as whole words, at the start of a word, inside."""
    return bare != wanted, not bare.startswith(wanted), f" {wanted} " not in f" {bare} ", f" {wanted}" not in bare


class ItemIndex:
    """Find items of a catalogue by title (ignoring case and spacing), otherwise by id."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._by_title: defaultdict[str, list[str]] = defaultdict(list)
        for item_id, title in catalogue.titles.items():
            self._by_title[normal_title(title)].append(item_id)

    def __len__(self) -> int:
        return len(self.catalogue)

    def item(self, item_id: str) -> Item:
        """Return the item with this id."""
        return Item(item_id=item_id, title=self.catalogue.titles[item_id])

    def named(self, name: ItemName) -> list[str]:
        """Return the ids of the items that a rule names: the item with this id, otherwise all with this title."""
        text = name.item_id if isinstance(name, ById) else name
        if text in self.catalogue.titles:
            return [text]
        return [] if isinstance(name, ById) else self._by_title.get(normal_title(text), [])

    def resolve(self, names: Iterable[ItemName]) -> list[Item]:
        """Return the items of `names`.

        Raise UnknownItemsError, with similar titles, if a name matches no item or several.
        """
        known: list[Item] = []
        unknown: list[UnknownName] = []
        message = ""
        for given in names:
            name = given.item_id if isinstance(given, ById) else given
            ids = [] if isinstance(given, ById) else self._by_title.get(normal_title(name), [])
            if not ids and name in self.catalogue.titles:
                ids = [name]
            # Several items can have the same title.
            if len(ids) == 1:
                known.append(self.item(ids[0]))
                continue
            near = [self.item(i) for i in ids[:ALIKE]]
            if not ids and len(unknown) < SEARCHED:
                near = self.search(name, NEAR)
            unknown.append(UnknownName(given=name, near=near))
            shown = ", ".join(f"{i.title} (id {i.item_id})" for i in near)
            several = f"{name!r} is the title of several items; give the id: {shown}"
            none = f"no item with title or id {name!r} among {len(self)}" + (f"; similar: {shown}" if shown else "")
            message = message or (several if ids else none)
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise UnknownItemsError(message + more, unknown)
        return known

    def resolve_lists(self, history: Names, candidates: Names = ()) -> tuple[list[Item], list[Item]]:
        """Return the items of both lists; raise as in `resolve`, and DataError if a candidate is named twice."""
        items = self.resolve([*history, *candidates])
        past, choices = items[: len(history)], items[len(history) :]
        before: set[Item] = set()
        for item in choices:
            if item in before:
                raise DataError(f"{item.title!r} occurs twice among the candidates; give every item once")
            before.add(item)
        return past, choices

    def search(self, text: str, limit: int) -> list[Item]:
        """Return the item with this id, then those whose titles equal, begin with, contain or resemble `text`.

        Articles and punctuation are ignored. An empty text returns the first items of the catalogue.
        """
        wanted = bare_title(text)
        if not wanted:
            return [self.item(i) for i in self.catalogue.ids[:limit]]
        words = set(wanted.split())
        holding = [bare for bare in self._by_bare if wanted in bare]
        if len(words) > 1:  # in another order
            holding += [bare for bare in self._by_bare if wanted not in bare and words.issubset(bare.split())]
        holding.sort(key=partial(_distance, wanted))
        items = self._items(holding[:limit])
        if text.strip() in self.catalogue.titles:
            items.insert(0, self.item(text.strip()))
        if len(items) < limit:
            items += self._items(self._similar(wanted[:COMPARED], limit))
        return list(dict.fromkeys(items))[:limit]

    @cached_property
    def _by_bare(self) -> dict[str, list[str]]:
        """Bare title (`bare_title`) → normalised titles."""
        titles: defaultdict[str, list[str]] = defaultdict(list)
        for title in self._by_title:
            titles[bare_title(title)].append(title)
        return titles

    def _similar(self, wanted: str, limit: int) -> list[str]:
        bare, best = [*self._by_bare], []
        # rapidfuzz blocks all other threads while it compares, and the server must answer other requests meanwhile.
        for start in range(0, len(bare), BLOCK):
            block = bare[start : start + BLOCK]
            best += process.extract(wanted, block, scorer=fuzz.WRatio, limit=limit, score_cutoff=NEAR_ENOUGH)
        return [title for title, _, _ in nlargest(limit, best, key=lambda hit: hit[1])]

    def _items(self, bare_titles: Iterable[str]) -> list[Item]:
        return [self.item(i) for bare in bare_titles for title in self._by_bare[bare] for i in self._by_title[title]]


def bare_title(title: str) -> str:
    """Return a normalised title without articles, punctuation and accents: `Matrix, The` → `matrix`."""
    plain = normal_title(title)
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    words = re.findall(r"\w+", plain.replace("'", "").replace("’", ""))
    return " ".join([word for word in words if word not in ARTICLES] or words) or plain
