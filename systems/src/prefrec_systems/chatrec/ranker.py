"""Chat-REC as a ranker: the retriever's best items, reordered by a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from prefrec import processes
from prefrec.console import say
from prefrec.data import Catalogue, Query
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import RandomRanker
from prefrec.rankers.matrices import pad_scores
from prefrec_systems.chatrec.answer import Answer, read_answer
from prefrec_systems.chatrec.chat import ChatModel
from prefrec_systems.chatrec.profile import Profiles
from prefrec_systems.chatrec.prompt import question


@dataclass
class Counts:
    """Numbers of answers, unreadable answers, entries that name no shown title, and shown titles that are missing."""

    answers: int = 0
    unreadable: int = 0
    invented: int = 0
    missing: int = 0


class ChatRecRanker:
    """Ranks candidates by a retriever, then reorders the best ones by a language model.

    Scores are positions: of C items, the first scores C and the last 1. Items that the answer names come first, then
    the other shown items in the retriever's order, then items that were not shown. If the answer names no item, the
    retriever's order stays. A hash breaks ties of the retriever, so that the order of candidates has no influence.

    Args:
        name: name in tables.
        retriever: any other ranker.
        chat: the language model.
        catalogue: all items.
        profiles: profiles of users.
        domain: kind of items (`prefrec_systems.chatrec.prompt.WORDS`).
        keep: number of items to show.
        seed: of the hash.
    """

    def __init__(
        self,
        name: str,
        retriever: Ranker,
        chat: ChatModel,
        catalogue: Catalogue,
        profiles: Profiles,
        *,
        domain: str = "generic",
        keep: int = 20,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.retriever = retriever
        self.chat = chat
        self.catalogue = catalogue
        self.profiles = profiles
        self.domain = domain
        self.keep = keep
        self.counts = Counts()
        self._ties = RandomRanker(seed)
        self._known: dict[tuple[str | None, tuple[str, ...], tuple[str, ...]], tuple[list[int], Answer]] = {}

    def retrieve(self, queries: Sequence[Query]) -> list[list[int]]:
        """Return the indices of each query's candidates in the retriever's order, best first."""
        if not queries:
            return []
        scores, ties = self.retriever.score(queries), self._ties.score(queries)
        orders = np.lexsort((-ties, -scores), axis=-1)
        return [order[: len(q.candidates)].tolist() for order, q in zip(orders, queries, strict=True)]

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Return the answer to each query; its indices are those of the `keep` items shown."""
        return [answer for _, answer in self._answers(queries)]

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C]: C for the first item, 1 for the last; -inf in empty columns."""
        rows = []
        for retrieved, answer in self._answers(queries):
            order = self.order(retrieved, answer)
            row = np.empty(len(order))
            row[order] = np.arange(len(order), 0, -1)
            rows.append(row)
        return pad_scores(rows)

    def generate(self, queries: Sequence[Query]) -> list[str]:
        """Return the first entry of each answer's list, unchanged, so that invented titles count as invalid."""
        return [answer.listed[0] if answer.listed else answer.text for answer in self.ask(queries)]

    def order(self, retrieved: Sequence[int], answer: Answer) -> list[int]:
        """Return all indices, best first: those that the answer names, then the others in the retriever's order."""
        named = [retrieved[n] for n in answer.order]
        return named + [index for index in retrieved if index not in set(named)]

    def question(self, query: Query, retrieved: Sequence[int]) -> str:
        """Return the prompt for the language model."""
        profile = self.profiles.lines(query.user_id, query.history)
        history = self.catalogue.titles_of(query.history)
        return question(profile, history, self._shown(query, retrieved), self.domain)

    def _shown(self, query: Query, retrieved: Sequence[int]) -> list[str]:
        return self.catalogue.titles_of(query.candidates[index] for index in retrieved[: self.keep])

    def _answers(self, queries: Sequence[Query]) -> list[tuple[list[int], Answer]]:
        """Return the retriever's order and the answer of each query; known answers are not requested again."""
        new = [q for key, q in {_key(q): q for q in queries}.items() if key not in self._known]
        if new:
            orders = dict(zip(new, self.retrieve(new), strict=True))
            share = processes.share(new)
            conversations = [[{"role": "user", "content": self.question(q, orders[q])}] for q in share]
            texts = self.chat.answer(conversations, f"{self.name}: reordering")
            answers = dict(processes.pool(list(zip(share, texts, strict=True))))
            for query in new:
                self._known[_key(query)] = orders[query], self._read(query, orders[query], answers[query])
            self._report()
        return [self._known[_key(q)] for q in queries]

    def _read(self, query: Query, retrieved: Sequence[int], text: str) -> Answer:
        shown = self._shown(query, retrieved)
        answer = read_answer(text, shown)
        self.counts.answers += 1
        self.counts.unreadable += not answer.order
        self.counts.invented += len(answer.invented)
        self.counts.missing += len(shown) - len(answer.order) if answer.order else 0
        return answer

    def _report(self) -> None:
        c = self.counts
        say(
            f"{escape(self.name)}: {c.answers} answers, {c.unreadable} unreadable (kept in the retriever's order), "
            f"{c.invented} entries that name no shown item, {c.missing} shown items missing"
        )


def _key(query: Query) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Return what the prompt depends on, which is not the target."""
    return query.user_id, query.history, query.candidates
