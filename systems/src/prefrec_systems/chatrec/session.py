"""A conversation with Chat-REC, in which the user can ask about recommendations and refine them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefrec.data import Query
from prefrec.errors import DataError
from prefrec.prompts.chat import Message
from prefrec_systems.chatrec.answer import read_answer
from prefrec_systems.chatrec.chat import ConversationTooLongError
from prefrec_systems.chatrec.prompt import extension, refinement
from prefrec_systems.chatrec.ranker import ChatRecRanker


@dataclass(frozen=True)
class Reply:
    """One turn of the language model.

    Attributes:
        text: its whole message.
        items: ids of the current list, best first.
        reason: the reason that it gave, or None.
        changed: whether this turn changed the list.
    """

    text: str
    items: tuple[str, ...]
    reason: str | None
    changed: bool


class ChatSession:
    """One user's conversation, kept in memory.

    The first message has the profile, the history and the retriever's best items. Later messages have the current
    list, so that the model can resolve "the second". A reply that lists candidates replaces the list; any other reply
    keeps it. If the first reply cannot be parsed, the list is in the retriever's order.

    Args:
        ranker: Chat-REC.
        user_id: user whose profile is shown; None: nobody's.
        history: item ids, oldest first.
        candidates: item ids. Default: all items that are not in the history.
        turns: number of latest turns to send again, as far as they fit. The first turn is always sent.

    Raises:
        DataError: an item is not in the catalogue, or no candidates are left.
    """

    def __init__(
        self,
        ranker: ChatRecRanker,
        user_id: str | None,
        history: Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        turns: int = 6,
    ) -> None:
        if candidates is None:
            seen = set(history)
            candidates = [item for item in ranker.catalogue.ids if item not in seen]
        if not candidates:
            raise DataError("there is nothing to recommend: the history has all items of the catalogue")
        ranker.catalogue.titles_of([*history, *candidates])
        self.ranker = ranker
        self.turns = turns
        self.query = Query(tuple(history), tuple(candidates), user_id=user_id)
        self.messages: list[Message] = []
        self.items: tuple[str, ...] = ()
        self._retrieved = ranker.retrieve([self.query])[0]
        self._shown = 0

    def recommend(self) -> Reply:
        """Return the first recommendation; later calls recommend from the retriever's next items.

        Raises:
            DataError: the retriever has no more items.
        """
        start = self._shown
        fresh = self._candidates(start, start + self.ranker.keep)
        if not fresh:
            raise DataError(f"all {len(self._retrieved)} candidates have been shown")
        message = extension(self._titles(fresh)) if start else self.ranker.question(self.query, self._retrieved)
        reply = self._turn(message, fresh, otherwise=fresh)
        self._shown += len(fresh)  # only now, because a turn that fails has shown nothing
        return reply

    def ask(self, text: str) -> Reply:
        """Return the answer to the user's message. An error does not change the conversation."""
        if not self.messages:
            self.recommend()
        shown = self._candidates(0, self._shown)
        return self._turn(refinement(text, self._titles(self.items)), shown, otherwise=None)

    def _turn(self, message: str, among: Sequence[str], otherwise: Sequence[str] | None) -> Reply:
        """Send a message, and replace the list by the items of `among` in the answer's list.

        Items of `otherwise` that the answer does not list follow. If the answer lists nothing and `otherwise` is
        None, the list stays.
        """
        text = self._answer({"role": "user", "content": message})
        self.messages += [{"role": "user", "content": message}, {"role": "assistant", "content": text}]
        answer = read_answer(text, self._titles(among))
        named = [among[n] for n in answer.order]
        if named or otherwise is not None:
            self.items = (*named, *(i for i in otherwise or () if i not in named))
        return Reply(text, self.items, answer.reason, bool(named))

    def _answer(self, message: Message) -> str:
        """Return the answer to a message, sent with the first turn and as many of the latest turns as fit."""
        first, later = self.messages[:2], self.messages[2:]
        start = max(0, len(later) - 2 * (self.turns - 1))
        while True:
            try:
                return self.ranker.chat.answer([[*first, *later[start:], message]], "answering")[0]
            except ConversationTooLongError:
                if start >= len(later):
                    raise
                start += 2

    def _candidates(self, start: int, end: int) -> list[str]:
        return [self.query.candidates[index] for index in self._retrieved[start:end]]

    def _titles(self, items: Sequence[str]) -> list[str]:
        return self.ranker.catalogue.titles_of(items)
