"""Items as clients name them: by id, by title, or nearly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from rapidfuzz import fuzz, process

from prefrec.data import Catalogue
from prefrec.data.titles import normal_title
from prefrec.errors import DataError
from prefrec.serving.bodies import ById, ItemName

NEAR = 3
"""Near matches that an unknown title is answered with."""

ALIKE = 20
"""Items that a title of several items is answered with."""

ANSWERED = 5
"""Unknown titles of one request that get near matches: a search through the catalogue each."""

NEAR_ENOUGH = 60.0
"""Least similarity of a near match, of 100 (rapidfuzz's weighted ratio)."""


@dataclass(frozen=True)
class Item:
    """An item of the catalogue."""

    item_id: str
    title: str


@dataclass(frozen=True)
class Unknown:
    """A name that is no item's, or more than one's, and the items that it may stand for."""

    given: str
    near: tuple[Item, ...]
    ambiguous: bool = False


class UnknownItemsError(DataError):
    """Some names of a request stand for no item, or for several."""

    def __init__(self, unknown: Sequence[Unknown], size: int) -> None:
        first = unknown[0]
        names = ", ".join(f"{i.title} (id {i.item_id})" for i in first.near)
        if first.ambiguous:
            message = f"{first.given!r} is the title of several items; give the id: {names}"
        else:
            hint = f"; near ones: {names}" if names else ""
            message = f"no item with title or id {first.given!r} among {size}{hint}"
        more = len(unknown) - 1
        super().__init__(f"{message} (and {more} more)" if more else message)
        self.unknown = tuple(unknown)


class ItemIndex:
    """Finds items of a catalogue by id or title.

    Titles are compared without case and spacing. A text that is one item's title and another's id stands for
    the title, as in `prefrec rank`.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._by_title: defaultdict[str, list[str]] = defaultdict(list)
        for item_id, title in catalogue.titles.items():
            self._by_title[normal_title(title)].append(item_id)
        self._normal = list(self._by_title)

    def __len__(self) -> int:
        return len(self.catalogue)

    def item(self, item_id: str) -> Item:
        """The item with this id."""
        return Item(item_id, self.catalogue.titles[item_id])

    def resolve(self, names: Iterable[ItemName]) -> list[str]:
        """Item ids of `names`, each a title or an id.

        Raises:
            UnknownItemsError: some stand for no item or several; it carries near ones of the first five.
        """
        found: list[str] = []
        unknown: list[Unknown] = []
        for given in names:
            name = given.item_id if isinstance(given, ById) else given
            ids = [] if isinstance(given, ById) else self._by_title.get(normal_title(name), [])
            if not ids and name in self.catalogue.titles:
                ids = [name]
            if len(ids) == 1:
                found.append(ids[0])
            elif ids:
                unknown.append(Unknown(name, tuple(map(self.item, ids[:ALIKE])), ambiguous=True))
            else:
                near = self.near(name, NEAR) if len(unknown) < ANSWERED else []
                unknown.append(Unknown(name, tuple(near)))
        if unknown:
            raise UnknownItemsError(unknown, len(self))
        return found

    def plain_titles(self, limit: int) -> list[str]:
        """Titles of the catalogue's first items that stand for one item each."""
        first = (i.title for i in map(self.item, self.catalogue.ids))
        return list(islice((t for t in first if len(self._by_title[normal_title(t)]) == 1), limit))

    def near(self, text: str, limit: int) -> list[Item]:
        """Items whose titles are like `text`, the most alike first."""
        hits = process.extract(
            normal_title(text), self._normal, scorer=fuzz.WRatio, limit=limit, score_cutoff=NEAR_ENOUGH
        )
        return self._items(title for title, _, _ in hits)[:limit]

    def search(self, text: str, limit: int) -> list[Item]:
        """Items for a search box: titles that begin with `text`, that hold it as a word's start, anywhere, or nearly.

        An empty text gives the catalogue's first items; an id gives its item first.
        """
        wanted = normal_title(text)
        if not wanted:
            return [self.item(i) for i in self.catalogue.ids[:limit]]
        holding = [t for t in self._normal if wanted in t]
        holding.sort(key=lambda t: (not t.startswith(wanted), f" {wanted}" not in t))
        found = self._items(holding[:limit])
        if text.strip() in self.catalogue.titles:
            found.insert(0, self.item(text.strip()))
        if len(found) < limit:
            found += self.near(text, limit)
        return list(dict.fromkeys(found))[:limit]

    def _items(self, normal_titles: Iterable[str]) -> list[Item]:
        return [self.item(i) for t in normal_titles for i in self._by_title[t]]
