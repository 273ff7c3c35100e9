"""Histories as running text, in which every title is the answer to the text before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from prefrec.errors import TemplateError
from prefrec.prompts.encoding import ChoiceSet, PromptEncoder
from prefrec.prompts.templates import PromptTemplate

_FIRST, _SECOND = "the-first-title", "the-second-title"
# Changes of case, escaping, cuts, sorting and the removal of repeated titles would all alter this history.
_LONG_TITLE = "{}, aN <unusual> & “quoted” Title: " + "with 'many' Words " * 20 + "(1995)"
_LONG_HISTORY = [_LONG_TITLE.format(7 * n % 20) for n in range(1, 41)]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The token ids of a history: head, title, joint, title, …, tail, last title.

    Attributes:
        head: tokens before the first title.
        joint: tokens between titles.
        tail: tokens before the last title; equal to `joint` if the template ends with the history.
        answers: the titles, end tokens included.
        joints: tokens after each title but the last, if they differ by title.
    """

    head: tuple[int, ...]
    joint: tuple[int, ...]
    tail: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    joints: tuple[tuple[int, ...], ...] = ()

    def joint_after(self, index: int) -> tuple[int, ...]:
        """Return the tokens between title `index` and the next one; none after the last title."""
        left = len(self.answers) - 1 - index
        if self.joints:
            return self.joints[index] if left else ()
        return self.joint if left > 1 else self.tail if left else ()

    @property
    def length(self) -> int:
        """Number of tokens, without the end token of the last title."""
        return len(self.head) + sum(len(a) - 1 + len(self.joint_after(i)) for i, a in enumerate(self.answers))


def question(row: ChoiceSet | Trajectory) -> ChoiceSet:
    """Return a row as a choice set; a trajectory becomes the question for its last title."""
    if isinstance(row, ChoiceSet):
        return row
    parts = [t for i, a in enumerate(row.answers[:-1]) for t in (*a[:-1], *row.joint_after(i))]
    return ChoiceSet((*row.head, *parts), row.answers[-1:])


class TrajectoryEncoder:
    """An encoder of histories into `Trajectory`s, by a template rendered without candidates."""

    def __init__(self, template: PromptTemplate, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        head, _, rest = template.render([_FIRST, _SECOND], []).partition(_FIRST)
        joint, _, tail = rest.partition(_SECOND)
        self._template, self._is_regular = template.name, _is_regular(template, head, joint, tail)
        opening, closing = encoder.frame
        self._texts = opening + head, joint, tail + closing
        between, last = (encoder.ids(text, after=_FIRST) for text in (joint, tail + closing))
        self._pieces = encoder.ids(opening + head, begin=True), between, last
        self._joint_ids = cache(encoder.detail_ids)

    def encode(self, titles: Sequence[str]) -> Trajectory:
        """Encode titles, oldest first.

        Raises:
            ValueError: `titles` is empty.
            TemplateError: the template writes histories in such a way that the trajectory would be another text.
        """
        if not titles:
            raise ValueError("a trajectory needs at least one title")
        if not self._is_regular:
            raise TemplateError(
                f"template {self._template}: SFT learns from every title of a history, but the template changes, "
                "numbers, reorders or leaves out titles, or its separators differ: write each title unchanged, in "
                "order and with one separator, or show the candidates"
            )
        head, joint, tail = self._texts
        before = ["", *self.encoder.shown(titles[:-1])]
        texts = [head, *[joint] * (len(titles) - 2), tail][: len(titles)]
        contexts = zip(before, texts, titles, strict=True)
        answers = [self.encoder.answers_after(title + text, [next_title])[0] for title, text, next_title in contexts]
        joints = map(self._joint_ids, titles, texts[1:]) if self.encoder.details else ()
        return Trajectory(*self._pieces, tuple(answers), tuple(joints))

    def answers(self, titles: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the distinct token sequences of titles, after every text that can precede them."""
        head, joint, tail = self._texts
        contexts = [head, _FIRST + joint, _FIRST + tail]
        return list(dict.fromkeys(a for text in contexts for a in self.encoder.answers_after(text, titles)))


def _is_regular(template: PromptTemplate, head: str, joint: str, tail: str) -> bool:
    """Return True if the template writes every history as head, titles with `joint` between them, and tail."""
    histories = (_LONG_HISTORY[:n] for n in (1, 3, len(_LONG_HISTORY)))
    return all(template.render(titles, []) == head + joint.join(titles) + tail for titles in histories)
