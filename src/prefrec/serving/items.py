"""Items as clients name them: by id, by title, or nearly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rapidfuzz import fuzz, process

from prefrec.data import Catalogue
from prefrec.data.titles import normal_title
from prefrec.errors import DataError
from prefrec.serving.bodies import ById, ItemBody, ItemName, UnknownName

Names = Sequence[ItemName]
NEAR, SEARCHED = 3, 5
"""Near matches of an unknown title, and unknown titles of a request that get some: each costs a search of all."""
ALIKE = 20
"""Most items listed for a title that several items have."""
NEAR_ENOUGH = 60.0
"""Least similarity of a near match, out of 100 (rapidfuzz's weighted ratio)."""


class UnknownItemsError(DataError):
    """An error in a request's names: some match no item, or several."""

    def __init__(self, message: str, unknown: list[UnknownName]) -> None:
        super().__init__(message)
        self.unknown = unknown


class ItemIndex:
    """Finds items of a catalogue by title, whose case and spacing do not matter, else by id."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._by_title: defaultdict[str, list[str]] = defaultdict(list)
        for item_id, title in catalogue.titles.items():
            self._by_title[normal_title(title)].append(item_id)
        self._normal = list(self._by_title)

    def __len__(self) -> int:
        return len(self.catalogue)

    def item(self, item_id: str) -> ItemBody:
        """Return the item with this id."""
        return ItemBody(item_id=item_id, title=self.catalogue.titles[item_id])

    def resolve(self, names: Iterable[ItemName]) -> list[ItemBody]:
        """Return the items of `names`; UnknownItemsError, with near matches, if some stand for none or several."""
        known: list[ItemBody] = []
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
                near = self.near(name, NEAR)
            unknown.append(UnknownName(given=name, near=near))
            shown = ", ".join(f"{i.title} (id {i.item_id})" for i in near)
            several = f"{name!r} is the title of several items; give the id: {shown}"
            none = f"no item with title or id {name!r} among {len(self)}" + (f"; near ones: {shown}" if shown else "")
            message = message or (several if ids else none)
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise UnknownItemsError(message + more, unknown)
        return known

    def resolve_lists(self, history: Names, candidates: Names = ()) -> tuple[list[ItemBody], list[ItemBody]]:
        """Return the items of both lists; raise as `resolve`, and DataError if a candidate is named twice."""
        items = self.resolve([*history, *candidates])
        shown, listed = items[: len(history)], items[len(history) :]
        if twice := next((item for n, item in enumerate(listed) if item in listed[:n]), None):
            raise DataError(f"{twice.title!r} is given twice among the candidates; give every item once")
        return shown, listed

    def near(self, text: str, limit: int) -> list[ItemBody]:
        """Return items whose titles are similar to `text`, the most similar first."""
        text = normal_title(text)
        hits = process.extract(text, self._normal, scorer=fuzz.WRatio, limit=limit, score_cutoff=NEAR_ENOUGH)
        return self._items(title for title, _, _ in hits)[:limit]

    def search(self, text: str, limit: int) -> list[ItemBody]:
        """Return the item with this id, then those whose titles are `text`, begin with it, contain it or are similar.

        An empty text gives the catalogue's first items.
        """
        wanted = normal_title(text)
        if not wanted:
            return [self.item(i) for i in self.catalogue.ids[:limit]]
        holding = [t for t in self._normal if wanted in t]
        whole = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)").search
        holding.sort(key=lambda t: (t != wanted, not t.startswith(wanted), not whole(t), f" {wanted}" not in t))
        items = self._items(holding[:limit])
        if text.strip() in self.catalogue.titles:
            items.insert(0, self.item(text.strip()))
        if len(items) < limit:
            items += self.near(text, limit)
        return list(dict.fromkeys(items))[:limit]

    def _items(self, normal_titles: Iterable[str]) -> list[ItemBody]:
        return [self.item(i) for t in normal_titles for i in self._by_title[t]]
