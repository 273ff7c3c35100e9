"""What a ranker is asked: which of some candidates comes next after a history."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a ranker: which of `candidates` comes next after `history`? It has no target.

    Attributes:
        history: item ids, oldest first.
        candidates: item ids, each once.
        time: time of the question in seconds since 1970. Default: now, just after the end of the log.
        history_times: times of the first items of the history, in seconds since 1970. Items without one are newer.
            Empty if the data have no dates or no repeats, because only features of repeats read them.
        user_id: the user's id, if the question is about a user of the log. Default: it is about a history alone.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    time: int | None = field(default=None, compare=False)
    history_times: tuple[int, ...] = field(default=(), compare=False)
    user_id: str | None = None

    def among(self, candidates: tuple[str, ...]) -> Query:
        """Return the query about other candidates, without a target if this one has one."""
        return Query(self.history, candidates, self.time, self.history_times, self.user_id)
