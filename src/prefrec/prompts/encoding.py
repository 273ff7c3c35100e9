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

from transformers import PreTrainedTokenizerBase

from prefrec.errors import TokenizerError
from prefrec.prompts.chat import Message, chat_frame, special_ids
from prefrec.prompts.templates import PromptTemplate

MAX_LENGTH = 1024
"""Tokens of a prompt with its longest answer, by default, in training and ranking."""
_REMEMBERED = 1 << 17
TOKENIZING = RLock()
"""Held where a tokenizer is used: its settings change from call to call, and several threads may share it."""


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """A prompt and C answers as token ids.

    The prompt begins with the beginning token if the tokenizer has one. Every answer ends with the end token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers), default=0)


class PromptEncoder:
    """An encoder of prompts and answers into `ChoiceSet`s.

    An answer's tokens are those of the joint text, which is tokenised once, so the boundary is the one that a
    generating model sees. In that text the answer follows a new line directly, and other words after the white space
    that the prompt ends with, else its own, else a space: never after two. Such white space at the end of a prompt,
    but a new line, belongs to the answer's tokens, as tokenizers join a space to the word after it. TRL joins both
    texts as they are, cuts where the tokens of the prompt alone end to agree, and leaves the rest of the prompt out:
    rows such as `"Answer:"` and `" Heat"` have the same tokens there.

    Text from data never becomes a special token: `<|im_end|>` inside a title is read as characters.

    Args:
        max_length: maximal tokens of a prompt with its longest answer; None for no limit.
        chat: wrap the prompt as a user's message in the tokenizer's chat template.
        details: title → text that follows it in a history, such as ` (1995, Drama)`.
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
            raise TokenizerError("the tokenizer has no end token, which closes answers; set `tokenizer.eos_token`")
        if chat and not tokenizer.chat_template:
            raise TokenizerError("the tokenizer has no chat template; turn `chat` off or use an instruct model")
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
        """Encode a ranking question; the oldest titles of a history that is too long are dropped.

        Args:
            template: prompt template.
            history: titles, oldest first.
            candidates: titles that the prompt lists, if the template does.
            answers: titles to score.

        Raises:
            TokenizerError: the prompt does not fit even without a history.
        """
        return self.fit(template, history, candidates, answers)[0]

    def fit(
        self, template: PromptTemplate, history: Sequence[str], candidates: Sequence[str], answers: Sequence[str]
    ) -> tuple[ChoiceSet, int]:
        """Return the result of `encode`, and the smallest sufficient number of dropped titles."""
        tried: dict[int, ChoiceSet] = {}
        shown = self.shown(history)

        def fits(dropped: int) -> bool:
            tried[dropped] = self._encode(template.render(shown[dropped:], candidates), answers)
            return self.max_length is None or tried[dropped].length <= self.max_length

        # Dropping a title never makes a prompt longer, so bisection needs few attempts.
        least = 0 if fits(0) else bisect_left(range(len(history) + 1), True, lo=1, key=fits)
        if least > len(history):
            raise TokenizerError(
                f"the prompt of template {template.name} takes {tried[len(history)].length} tokens without any "
                f"history, max_length is {self.max_length}: show fewer candidates, raise max_length or shorten the "
                f"template{_longest([*candidates, *answers])}"
            )
        with TOKENIZING:
            self.shortened += least > 0
        return tried[least], least

    def encode_text(self, prompt: str | Sequence[Message], answers: Sequence[str]) -> ChoiceSet:
        """Encode a prompt that is text, or messages for the chat template.

        Raise TokenizerError if it exceeds `max_length` with an answer.
        """
        choices = (self if isinstance(prompt, str) else self._in_chat)._encode(prompt, answers)
        if self.max_length is not None and choices.length > self.max_length:
            raise TokenizerError(
                f"the prompt and its longest answer take {choices.length} tokens, max_length is "
                f"{self.max_length}: shorten the prompt or raise max_length (prompt begins {prompt[:60]!r})"
            )
        return choices

    def answers_after(self, text: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of `answers` after a prompt that ends with `text`, end token included."""
        return self._after(_last_line(text), answers)

    def shown(self, titles: Sequence[str]) -> list[str]:
        """Return the texts of titles in a history."""
        return [title + self.details.get(title, "") for title in titles]

    def detail_ids(self, title: str, piece: str) -> tuple[int, ...]:
        """Return the token ids of a title's details and the piece of a template after them."""
        detail = self.details.get(title, "")
        together, apart = self.ids(detail + piece, after=title), (*self._ids(detail), *self.ids(piece))
        # Text from data must not become special.
        return together if self._count_special(together) == self._count_special(apart) else apart

    def ids(self, text: str, *, begin: bool = False, after: str = "") -> tuple[int, ...]:
        """Return the token ids of a piece of a template or of the chat template, without text from data.

        White space at its end belongs to the title that follows. `begin` adds the tokenizer's beginning token, unless
        the chat template writes it. `after` is a text before the piece: SentencePiece puts a space before the first.
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
        """The chat template's text before and after a prompt; two empty texts without one."""
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
        # Text from data became special.
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
            # A merge across the boundary, or a special token in a title, would change what the prompt says.
            if ids[: len(before)] != before or (self.chat and self._count_special(answer_ids)):
                answer_ids = self._ids(text)
            out.append((*answer_ids, self.end))
        return out

    def _context(self, tail: str) -> str:
        """Return the part of `tail` that the tokens of a following title depend on."""
        # A prompt that ends with its history has another tail per history, and for each of them all titles of a
        # catalogue would be tokenised again. A new line to which the tokenizer joins nothing cuts the history off.
        if self.chat or not tail.endswith("\n") or not self.parts_lines:
            return tail
        return tail[len(tail.rstrip()) :]

    @cached_property
    def parts_lines(self) -> bool:
        """True if no token of a byte-pair tokenizer spans the end of one line and the beginning of the next."""
        raw = getattr(self.tokenizer, "backend_tokenizer", None)
        if raw is None or type(raw.model).__name__ != "BPE":
            return False
        added = [t for t in self.tokenizer.added_tokens_decoder.values() if not t.special]
        if any(t.lstrip or t.rstrip for t in added):  # they absorb adjacent white space
            return False
        # "Ċ" is how byte-level tokenizers write a new line; "Ā" to "Ġ" are control characters and the space.
        joined = re.compile(r"\n[^\s▁]|Ċ[^\u0100-\u0120]")
        return not any(joined.search(token) for token in raw.get_vocab(with_added_tokens=True))

    def _many_ids(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        """Return the token ids of many texts with one call, which costs more than tokenising a title."""
        with TOKENIZING:
            out = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return [tuple(ids) for ids in out]

    def _ids(self, text: str, *, begin: bool = False, special: bool = False) -> tuple[int, ...]:
        with TOKENIZING:
            out = self.tokenizer(text, add_special_tokens=begin, split_special_tokens=not special)["input_ids"]
        ids = tuple(out)
        # A tokenizer that closes every text with its end token would end the prompt before the answer.
        return ids[:-1] if begin and ids[-1:] == (self.end,) else ids

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(i in self._special for i in ids)


def _longest(titles: Sequence[str]) -> str:
    """Return the longest title as the end of a message; "" if there are no titles."""
    longest = max(titles, key=len, default="")
    shown = repr(longest) if len(longest) <= 60 else f"{longest[:60]!r}…, {len(longest):,} characters"
    return f" (the longest title: {shown})" if longest else ""


def _begins_with_no_space(title: str) -> bool:
    # White space, or signs that a tokenizer normalises to it, could merge with the white space before the title.
    first = unicodedata.normalize("NFKC", title[:1])[:1]
    return first.isalnum() or (first != "" and first in string.punctuation)


def _parted(text: str) -> tuple[str, str]:
    """Return the text before an answer without the white space that belongs to the answer, and this white space."""
    # A new line is a token of its own, or joined to the sign before it, but to no word after it.
    kept = text if text.endswith("\n") else text.rstrip()
    return kept, text[len(kept) :]


def _following(before: str, gap: str, answer: str) -> str:
    """Return what follows the text before an answer: the answer, with the white space between them."""
    if before.endswith("\n") or (answer[:1].isspace() and not gap):
        return answer
    return (gap or " ") + answer.lstrip()


def _last_line(text: str) -> str:
    """Return the last line that is not blank, with the white space after it."""
    return text[text.rstrip().rfind("\n") + 1 :]
