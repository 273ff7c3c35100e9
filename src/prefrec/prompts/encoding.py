"""Tokenisation of prompts and answers, shared by training, evaluation and serving."""

from __future__ import annotations

import re
import string
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from threading import RLock
from typing import TYPE_CHECKING

from prefrec.errors import TokenizerError
from prefrec.prompts.chat import Message, chat_frame, special_ids
from prefrec.prompts.templates import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 1024
"""Default limit on the tokens of a prompt with its longest answer, in training and ranking."""
_REMEMBERED = 1 << 17
TOKENIZING = RLock()
"""Lock for calls of a tokenizer, which change its settings: several threads may share one tokenizer."""


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """A prompt and C answers as token ids.

    The prompt begins with the BOS token if the tokenizer has one. Every answer ends with the EOS token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Number of tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers), default=0)


class PromptEncoder:
    """An encoder of prompts and answers into `ChoiceSet`s.

    Prompt and answer are tokenised as one text, so the boundary between them is as in generation. After a new line,
    the answer follows directly. Otherwise exactly one white space separates them: that at the end of the prompt, else
    that at the beginning of the answer, else a space. White space at the end of a prompt, other than a new line,
    belongs to the answer's tokens, because tokenizers join a space to the word after it. TRL concatenates both texts
    unchanged, splits where the tokens of the prompt alone begin to differ, and drops the rest of the prompt. For
    examples such as `"Answer:"` with `" Heat"`, the tokens are the same.

    Data never produce special tokens: `<|im_end|>` inside a title is read as characters.

    Args:
        tokenizer: the model's tokenizer.
        max_length: maximum number of tokens of a prompt with its longest answer. Default: no limit.
        chat: wrap the prompt as a user message in the tokenizer's chat template.
        details: title → text that follows it in a history, such as ` (1995, Drama)`.

    Raises:
        TokenizerError: the tokenizer has no EOS token, or with `chat` no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        chat: bool = False,
        details: Mapping[str, str] = {},
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise TokenizerError("the tokenizer has no EOS token, which ends every answer; set `tokenizer.eos_token`")
        if chat and not tokenizer.chat_template:
            raise TokenizerError("the tokenizer has no chat template; turn off `chat`, or use an instruct model")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat = chat
        self.details = details
        self.end: int = tokenizer.eos_token_id
        self.shortened = 0
        self._answers: dict[tuple[str, str], tuple[int, ...]] = {}

    def encode(
        self, template: PromptTemplate, history: Sequence[str], candidates: Sequence[str], answers: Sequence[str]
    ) -> ChoiceSet:
        """Encode a ranking question. If the prompt is too long, the oldest titles of the history are dropped.

        Args:
            template: prompt template.
            history: titles, oldest first.
            candidates: titles for templates that list candidates.
            answers: titles to score.

        Raises:
            TokenizerError: the prompt does not fit even without a history.
        """
        return self.fit(template, history, candidates, answers)[0]

    def fit(
        self, template: PromptTemplate, history: Sequence[str], candidates: Sequence[str], answers: Sequence[str]
    ) -> tuple[ChoiceSet, int]:
        """Return the result of `encode`, and the number of dropped titles, which is as small as possible."""
        tried: dict[int, ChoiceSet] = {}
        shown = self.shown(history)

        def fits(dropped: int) -> bool:
            tried[dropped] = self._encode(template.render(shown[dropped:], candidates), answers)
            return self.max_length is None or tried[dropped].length <= self.max_length

        # Dropping a title never makes a prompt longer, so bisection needs few attempts.
        least = 0 if fits(0) else bisect_left(range(len(history) + 1), True, lo=1, key=fits)
        if least > len(history):
            raise TokenizerError(
                f"the prompt of template {template.name} has {tried[len(history)].length} tokens even without a "
                f"history, but max_length is {self.max_length}: use fewer candidates, raise max_length or shorten "
                f"the template{_longest([*candidates, *answers])}"
            )
        with TOKENIZING:
            self.shortened += least > 0
        return tried[least], least

    def encode_text(self, prompt: str | Sequence[Message], answers: Sequence[str]) -> ChoiceSet:
        """Encode a prompt given as text, or as messages for the chat template.

        Raise TokenizerError if the prompt with its longest answer exceeds `max_length`.
        """
        choices = (self if isinstance(prompt, str) else self._in_chat)._encode(prompt, answers)
        if self.max_length is not None and choices.length > self.max_length:
            begin = str(prompt)[:60]
            raise TokenizerError(
                f"the prompt with its longest answer has {choices.length} tokens, but max_length is "
                f"{self.max_length}: shorten the prompt or raise max_length (the prompt begins with {begin!r})"
            )
        return choices

    def answers_after(self, text: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of `answers` after a prompt that ends with `text`, end token included."""
        return self._after(_last_line(text), answers)

    def shown(self, titles: Sequence[str]) -> list[str]:
        """Return the texts of titles as they appear in a history."""
        return [title + self.details.get(title, "") for title in titles]

    def detail_ids(self, title: str, piece: str) -> tuple[int, ...]:
        """Return the token ids of a title's details and of the template text after them."""
        detail = self.details.get(title, "")
        together = self.ids(detail + piece, after=title)
        apart = (*self._ids(detail), *self.ids(piece))
        # Data must not produce special tokens.
        return together if self._count_special(together) == self._count_special(apart) else apart

    def ids(self, text: str, *, begin: bool = False, after: str = "") -> tuple[int, ...]:
        """Return the token ids of a piece of a prompt template or chat template, which contains no data.

        White space at its end belongs to the title that follows and is excluded.

        Args:
            text: the piece.
            begin: add the BOS token, unless the chat template writes it.
            after: text before the piece, because SentencePiece adds a space at the beginning of a text.
        """
        piece, _ = _parted(text)
        before = self._ids(after) if after else ()
        joint = self._ids(after + piece, begin=begin and not self.chat, special=self.chat)
        return joint[len(before) :] if joint[: len(before)] == before else self._ids(piece, special=self.chat)

    @cached_property
    def _in_chat(self) -> PromptEncoder:
        return self if self.chat else PromptEncoder(self.tokenizer, max_length=self.max_length, chat=True)

    @cached_property
    def _special(self) -> frozenset[int]:
        return special_ids(self.tokenizer)

    @cached_property
    def frame(self) -> tuple[str, str]:
        """The chat template's text before and after a prompt; two empty texts without a chat template."""
        if not self.chat:
            return "", ""
        head, tail = chat_frame(self.tokenizer, [{"role": "user", "content": ""}])
        return head, tail

    def _encode(self, prompt: str | Sequence[Message], answers: Sequence[str]) -> ChoiceSet:
        if isinstance(prompt, str) and not self.chat:
            return ChoiceSet(self.ids(prompt, begin=True), self._after(_last_line(prompt), answers))
        if isinstance(prompt, str):
            texts, (*heads, tail) = [prompt], self.frame
        else:
            texts, (*heads, tail) = [m["content"] for m in prompt], chat_frame(self.tokenizer, prompt)
        last, _ = _parted(tail)
        ids = self._ids("".join(chain(*zip(heads, texts, strict=True), [last])), special=True)
        *before, after = (self._ids(piece, special=True) for piece in (*heads, last))
        # Data produced special tokens.
        if self._count_special(ids) != self._count_special([*chain(*before), *after]):
            ids = (*chain(*chain(*zip(before, map(self._ids, texts), strict=True))), *after)
        return ChoiceSet(ids, self._after(tail, answers))

    def _after(self, tail: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of `answers` after a prompt that ends with `tail`, end token included."""
        context = self._context(tail)
        keys = {a: (context if _begins_with_no_space(a) else tail, a) for a in answers}
        with TOKENIZING:
            new = [a for a, key in keys.items() if key not in self._answers]
            if new and len(self._answers) + len(new) > _REMEMBERED:
                self._answers.clear()
                new = list(keys)
            if new:
                self._answers.update(zip((keys[a] for a in new), self._ids_after(tail, new), strict=True))
            return tuple(self._answers[keys[a]] for a in answers)

    def _ids_after(self, tail: str, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the result of `_after` without the cache."""
        last, gap = _parted(tail)
        texts = [_following(last, gap, answer) for answer in answers]
        before, *joint = self._many_ids([last, *(last + text for text in texts)], special=self.chat)
        out = []
        for text, ids in zip(texts, joint, strict=True):
            answer_ids = ids[len(before) :]
            # A merge across the boundary, or a special token in a title, would change the prompt.
            if ids[: len(before)] != before or (self.chat and self._count_special(answer_ids)):
                answer_ids = self._ids(text)
            out.append((*answer_ids, self.end))
        return out

    def _context(self, tail: str) -> str:
        """Return the part of `tail` on which the tokens of a following title depend."""
        # A prompt that ends with its history has a different tail for each history, and all titles of a catalogue
        # would be tokenised again for each. A new line that the tokenizer never merges with other text avoids this.
        if self.chat or not tail.endswith("\n") or not self.parts_lines:
            return tail
        return tail[len(tail.rstrip()) :]

    @cached_property
    def parts_lines(self) -> bool:
        """Whether no token of a byte-pair tokenizer spans the end of a line and the beginning of the next one."""
        raw = getattr(self.tokenizer, "backend_tokenizer", None)
        if raw is None or type(raw.model).__name__ != "BPE":
            return False
        added = [t for t in self.tokenizer.added_tokens_decoder.values() if not t.special]
        if any(t.lstrip or t.rstrip for t in added):  # they absorb adjacent white space
            return False
        # Byte-level tokenizers write a new line as "Ċ"; "Ā" to "Ġ" are control characters and the space.
        joined = re.compile(r"\n[^\s▁]|Ċ[^\u0100-\u0120]")
        return not any(joined.search(token) for token in raw.get_vocab(with_added_tokens=True))

    def _many_ids(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        """Tokenise many texts with one call, because a call costs more than tokenising a title."""
        with TOKENIZING:
            out = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return [tuple(ids) for ids in out]

    def _ids(self, text: str, *, begin: bool = False, special: bool = False) -> tuple[int, ...]:
        with TOKENIZING:
            ids = tuple(self.tokenizer(text, add_special_tokens=begin, split_special_tokens=not special)["input_ids"])
        # Some tokenizers add the EOS token to every text, which would end the prompt before the answer.
        return ids[:-1] if begin and ids[-1:] == (self.end,) else ids

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(i in self._special for i in ids)


def _longest(titles: Sequence[str]) -> str:
    """Return the end of a message that names the longest title; "" if there are no titles."""
    longest = max(titles, key=len, default="")
    shown = repr(longest) if len(longest) <= 60 else f"{longest[:60]!r}…, {len(longest):,} characters"
    return f" (the longest title: {shown})" if longest else ""


def _begins_with_no_space(title: str) -> bool:
    # White space, or characters that a tokenizer normalises to it, could merge with the white space before the title.
    first = unicodedata.normalize("NFKC", title[:1])[:1]
    return first.isalnum() or (first != "" and first in string.punctuation)


def _parted(text: str) -> tuple[str, str]:
    """Split a text before an answer into the text itself and the trailing white space that belongs to the answer."""
    # A new line is a token of its own, or merged with the character before it, but never with the word after it.
    kept = text if text.endswith("\n") else text.rstrip()
    return kept, text[len(kept) :]


def _following(before: str, gap: str, answer: str) -> str:
    """Return the answer, preceded by the white space that separates it from the text before it."""
    if before.endswith("\n") or (answer[:1].isspace() and not gap):
        return answer
    return (gap or " ") + answer.lstrip()


def _last_line(text: str) -> str:
    """Return the last non-blank line, with the white space after it."""
    return text[text.rstrip().rfind("\n") + 1 :]
