"""From text to token ids: the one tokenisation that training, evaluation and serving share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jinja2
from transformers import PreTrainedTokenizerBase

from prefrec.errors import TokenizerError
from prefrec.prompts.templates import PromptTemplate

_CHAT_CONTENT = "prefrec-content-stands-here"
_REMEMBERED = 1 << 17


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """A prompt and C answers as token ids; every answer ends with the end token.

    Attributes:
        prompt: token ids of the prompt (with the beginning token where the tokenizer sets one).
        answers: token ids of each answer, end token included.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers), default=0)


class PromptEncoder:
    """Turns prompts and answers into `ChoiceSet`s.

    The answer's tokens are those of the joint text prompt + answer, so the boundary is the one that a model
    generating after the prompt sees. Text from data never becomes a special token: `<|im_end|>` inside a
    title is read as these characters.

    Args:
        tokenizer: of the language model.
        max_length: tokens that a prompt with its longest answer may take; None for no limit.
        chat: wrap the prompt as a user's message by the tokenizer's chat template.

    Raises:
        TokenizerError: the tokenizer has no end token, or no chat template where one is asked for.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, chat: bool = False
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise TokenizerError(
                "the tokenizer has no end token, which closes every answer; set `tokenizer.eos_token` to one"
            )
        if chat and not tokenizer.chat_template:
            raise TokenizerError("the tokenizer has no chat template; turn `chat` off or use an instruct model")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat = chat
        self.end: int = tokenizer.eos_token_id
        self._special = special_ids(tokenizer)
        self.shortened = 0
        self._answers: dict[tuple[str, str], tuple[int, ...]] = {}

    def encode(
        self,
        template: PromptTemplate,
        history: Sequence[str],
        candidates: Sequence[str],
        answers: Sequence[str],
    ) -> ChoiceSet:
        """Encode a ranking question; the oldest titles of a history that does not fit are left out.

        Args:
            template: the prompt's template.
            history: titles, oldest first.
            candidates: titles shown in the prompt.
            answers: titles to score, usually the candidates or some of them.

        Raises:
            TokenizerError: instruction, candidates and answers alone exceed `max_length`.
        """
        return self.fit(template, history, candidates, answers)[0]

    def fit(
        self,
        template: PromptTemplate,
        history: Sequence[str],
        candidates: Sequence[str],
        answers: Sequence[str],
    ) -> tuple[ChoiceSet, int]:
        """As `encode`, and how many of the oldest titles were left out: as few as it takes.

        A prompt is taken to get no longer when a title is left out, so that few lengths are tried.
        """
        tried: dict[int, ChoiceSet] = {}

        def fits(dropped: int) -> bool:
            tried[dropped] = self._encode(template.render(history[dropped:], candidates), answers)
            return self.max_length is None or tried[dropped].length <= self.max_length

        short, least, step = -1, 0, 1  # one too few, and the next to try
        while not fits(least):
            if least == len(history):
                raise TokenizerError(
                    f"the prompt takes {tried[least].length} tokens without any history, max_length is "
                    f"{self.max_length}: show fewer candidates, raise max_length or write a shorter template"
                )
            short, least, step = least, min(least + step, len(history)), 2 * step
        while least - short > 1:
            middle = (short + least) // 2
            if fits(middle):
                least = middle
            else:
                short = middle
        self.shortened += least > 0
        return tried[least], least

    def encode_text(self, prompt: str, answers: Sequence[str]) -> ChoiceSet:
        """Encode a prompt that is already text.

        Raises:
            TokenizerError: prompt and longest answer exceed `max_length` (nothing is cut off silently).
        """
        choices = self._encode(prompt, answers)
        if self.max_length is not None and choices.length > self.max_length:
            raise TokenizerError(
                f"the prompt and its longest answer take {choices.length} tokens, max_length is "
                f"{self.max_length}: shorten the prompt or raise max_length (prompt begins {prompt[:60]!r})"
            )
        return choices

    def _encode(self, prompt: str, answers: Sequence[str]) -> ChoiceSet:
        if self.chat:
            head, tail = self._chat_frame
            ids = self._ids(head + prompt + tail, special=True)
            before, after = self._ids(head, special=True), self._ids(tail, special=True)
            if self._count_special(ids) != self._count_special(before + after):  # some come from the data
                ids = before + self._ids(prompt) + after
        else:
            ids, tail = self._ids(prompt, begin=True), _last_line(prompt)
        return ChoiceSet(ids, self._after(tail, answers))

    def _after(self, tail: str, answers: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of `answers` after a prompt that ends with `tail`, end token included."""
        new = [a for a in dict.fromkeys(answers) if (tail, a) not in self._answers]
        if len(self._answers) + len(new) > _REMEMBERED:
            self._answers.clear()
            new = list(dict.fromkeys(answers))
        if new:
            space = "" if tail[-1:].isspace() else " "
            before, *joint = self._many_ids([tail, *(tail + space + a for a in new)], special=self.chat)
            for answer, ids in zip(new, joint, strict=True):
                own = ids[len(before) :]
                if ids[: len(before)] != before or (self.chat and self._count_special(own)):
                    own = self._ids(space + answer)
                self._answers[tail, answer] = (*own, self.end)
        return tuple(self._answers[tail, a] for a in answers)

    def _many_ids(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        """Token ids of many texts by one call of the tokenizer: a call takes longer than a title."""
        out = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        return [tuple(ids) for ids in out]

    def _ids(self, text: str, *, begin: bool = False, special: bool = False) -> tuple[int, ...]:
        out = self.tokenizer(text, add_special_tokens=begin, split_special_tokens=not special)["input_ids"]
        ids = tuple(out)
        # A tokenizer that closes every text with its end token would end the prompt before the answer.
        return ids[:-1] if begin and ids[-1:] == (self.end,) else ids

    @cached_property
    def _chat_frame(self) -> tuple[str, str]:
        """What the chat template, which transformers renders in a sandbox, puts before and after a message."""
        message = [{"role": "user", "content": _CHAT_CONTENT}]
        try:
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as e:
            raise TokenizerError(f"the tokenizer's chat template cannot be used: {e}") from e
        head, found, tail = str(text).partition(_CHAT_CONTENT)
        if not found:
            raise TokenizerError("the tokenizer's chat template leaves out the user's message")
        return head, tail

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(i in self._special for i in ids)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that text from data must never become: more than `all_special_ids`, which holds the named ones only."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*added, *tokenizer.all_special_ids])


def _last_line(text: str) -> str:
    """The last line that holds something, with the white space after it."""
    start = text.rstrip().rfind("\n") + 1
    return text[start:]
