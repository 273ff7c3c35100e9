"""A conversation with Chat-REC: recommendations that the user can ask about and refine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefrec.data import RankingExample
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
        text: what it said.
        items: the list as it stands now, item ids, best first.
        reason: what it gave as its reason; None where it gave none.
        changed: whether this turn made the list.
    """

    text: str
    items: tuple[str, ...]
    reason: str | None
    changed: bool


class ChatSession:
    """One user's conversation, kept in memory.

    The first message holds the profile, the history and the retriever's best items; later ones hold the list as it
    stands, so that "the second" can be found. A reply that lists candidates makes the list anew: those it names. Any
    other reply, or a first one that cannot be read, leaves it.

    Args:
        ranker: retriever, language model and titles.
        user_id: whose profile is told.
        history: item ids, oldest first.
        candidates: item ids; by default all of the catalogue that are not in the history.
        turns: latest questions and answers that are told again, as far as they fit; the first one always is.

    Raises:
        DataError: an item is not in the catalogue, or no candidates are left.
    """

    def __init__(
        self,
        ranker: ChatRecRanker,
        user_id: str,
        history: Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        turns: int = 6,
    ) -> None:
        if candidates is None:
            seen = set(history)
            candidates = [item for item in ranker.catalogue.ids if item not in seen]
        if not candidates:
            raise DataError("there is nothing to recommend: the history holds the whole catalogue")
        ranker.catalogue.titles_of([*history, *candidates])
        self.ranker = ranker
        self.turns = turns
        self.example = RankingExample(user_id, tuple(history), tuple(candidates), candidates[0])
        self.messages: list[Message] = []
        self.items: tuple[str, ...] = ()
        self._retrieved = ranker.retrieve([self.example])[0]
        self._shown = 0

    def recommend(self) -> Reply:
        """The first recommendation; later calls bring the retriever's next items.

        Raises:
            DataError: the retriever has no further items.
        """
        start = self._shown
        fresh = self._candidates(start, start + self.ranker.keep)
        if not fresh:
            raise DataError(f"all {len(self._retrieved)} candidates have been shown")
        asked = extension(self._titles(fresh)) if start else self.ranker.question(self.example, self._retrieved)
        reply = self._turn(asked, fresh, otherwise=fresh)
        self._shown += len(fresh)  # only now: a turn that fails has shown nothing
        return reply

    def ask(self, text: str) -> Reply:
        """The answer to what the user says. Where there is none, for an error, the conversation stays as it was."""
        if not self.messages:
            self.recommend()
        shown = self._candidates(0, self._shown)
        return self._turn(refinement(text, self._titles(self.items)), shown, otherwise=None)

    def _turn(self, asked: str, among: Sequence[str], otherwise: Sequence[str] | None) -> Reply:
        """One exchange; items that the answer lists `among` those become the list.

        Where it lists none, `otherwise` becomes the list; None: the list stays. Where there is an `otherwise`, items
        of it that the answer leaves out follow.
        """
        said = self._answer({"role": "user", "content": asked})
        self.messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        answer = read_answer(said, self._titles(among))
        named = [among[n] for n in answer.order]
        if named or otherwise is not None:
            self.items = (*named, *(i for i in otherwise or () if i not in named))
        return Reply(said, self.items, answer.reason, bool(named))

    def _answer(self, asked: Message) -> str:
        """What the language model says after the first exchange and as many of the latest ones as fit."""
        first, later = self.messages[:2], self.messages[2:]
        start = max(0, len(later) - 2 * (self.turns - 1))
        while True:
            try:
                return self.ranker.chat.answer([[*first, *later[start:], asked]], "answering")[0]
            except ConversationTooLongError:
                if start >= len(later):
                    raise
                start += 2

    def _candidates(self, start: int, end: int) -> list[str]:
        return [self.example.candidates[place] for place in self._retrieved[start:end]]

    def _titles(self, items: Sequence[str]) -> list[str]:
        return self.ranker.catalogue.titles_of(items)
