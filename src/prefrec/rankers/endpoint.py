"""A model behind an OpenAI-compatible server as a ranker: the log-probs of echoed prompts are its scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.prompts import MAX_LENGTH, ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.rankers.openai_api import OpenAIClient, ServerSettings
from prefrec.rankers.rows import pad_scores
from prefrec.training import encode_examples

Kind = TypeVar("Kind", dict[str, Any], list[Any])

PROMPTS_A_REQUEST = 64
"""Where ids are sent. Texts go one by one: not all servers take lists of them."""


class EndpointConfig(ServerSettings, RankerConfig):
    """A model that a server holds, asked as the recipe's own model is asked: the same prompt, the same tokens."""

    kind: Literal["endpoint"] = "endpoint"
    name: str = "endpoint"
    tokenizer: str | None = Field(
        None, description="Of the served model: a folder or hub id; None: that of the recipe's model."
    )
    prompts: Literal["tokens", "text"] = Field(
        "tokens", description="What is sent: token ids, or text for servers that take no ids."
    )


class EndpointRanker:
    """Ranks candidates by the log-probability of their titles, end token included, under a model behind a server.

    Prompts and answers are encoded by the same template and encoder as `LMRanker`'s; for each candidate, prompt and
    answer are sent to `/completions` with `echo` and `logprobs`, and the log-probabilities of the answer's tokens
    are added up. With `prompts="tokens"` the server gets the very token ids, so that scores differ from those of
    `LMRanker` on the same weights by rounding only. With `prompts="text"` it gets their text, and must read it as
    the same number of tokens. Models that echo no log-probabilities can still `generate`.

    Args:
        name: shown in tables.
        client: of the server.
        tokenizer: of the served model.
        catalogue: titles of all items.
        template: the prompt.
        max_length: tokens of a prompt with its longest answer.
        chat: wrap the prompt by the tokenizer's chat template.
        prompts: `tokens`, or `text` where the server takes no ids.

    Under `accelerate launch` the processes share the rows, as with `LMRanker`.
    """

    def __init__(
        self,
        name: str,
        client: OpenAIClient,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: PromptTemplate,
        *,
        max_length: int | None = MAX_LENGTH,
        chat: bool = False,
        prompts: Literal["tokens", "text"] = "tokens",
    ) -> None:
        self.name = name
        self.client = client
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self.template = template
        self.encoder = PromptEncoder(tokenizer, max_length=max_length, chat=chat)
        self.as_text = prompts == "text"

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Log-probabilities [B, C] of the candidates' titles; −inf where a row has fewer candidates.

        Raises:
            ModelError: the server is away, refuses the question, echoes no log-probabilities, or reads other tokens.
        """
        sets = self._encode(examples, "candidates")
        if not sets:
            return pad_scores([])
        size = 1 if self.as_text else PROMPTS_A_REQUEST
        parts = [(row, part) for row in processes.share(range(len(sets))) for part in _parts(sets[row], size)]
        bodies = (self._question(part) for _, part in parts)
        answers = self.client.many(self.client.completions, bodies)
        scores: dict[int, list[float]] = {}
        for (row, part), answer in zip(track(parts, f"{self.name}: scoring"), answers, strict=True):
            scores.setdefault(row, []).extend(self._logps(part, answer))
        found = dict(processes.pool(list(scores.items())))
        return pad_scores([found[row] for row in range(len(sets))])

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """The answer (at most 20 new tokens) to each example's prompt, at temperature 0; errors as for `score`."""
        prompts = [self._sent([choices.prompt]) for choices in self._encode(examples, "target")]
        mine = processes.share(range(len(prompts)))
        bodies = ({"prompt": prompts[i], "max_tokens": MAX_NEW_TOKENS, "temperature": 0} for i in mine)
        answers = self.client.many(self.client.completions, bodies)
        texts = [(i, self._text(next(answers))) for i in track(mine, f"{self.name}: generating")]
        found = dict(processes.pool(texts))
        return [found[i] for i in range(len(prompts))]

    def _encode(self, examples: Sequence[RankingExample], answers: Any) -> list[ChoiceSet]:
        return encode_examples(examples, self.catalogue, [self.template], self.encoder, answers=answers)

    def _question(self, part: ChoiceSet) -> dict[str, Any]:
        """One token is generated and thrown away: servers differ in whether they allow none."""
        prompts = self._sent([part.prompt + answer for answer in part.answers])
        return {"prompt": prompts, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}

    def _sent(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """Prompts in the form in which they are sent: ids, or the text of the one there is."""
        if not self.as_text:
            return [list(ids) for ids in prompts]
        (ids,) = prompts
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _logps(self, part: ChoiceSet, answer: dict[str, Any]) -> Iterator[float]:
        """Log-probabilities of the part's answers: sums over their tokens, which end the echoed prompt."""
        choices = self._choices(answer, len(part.answers))
        asked = sum(len(part.prompt) + len(ids) for ids in part.answers)
        read = self._field(answer, "usage", dict, answer).get("prompt_tokens", asked)
        for choice, ids in zip(choices, part.answers, strict=True):
            length = len(part.prompt) + len(ids)
            logps = self._field(self._field(choice, "logprobs", dict, answer), "token_logprobs", list, answer)
            if len(logps) <= 1:
                raise ModelError(
                    f"{self.client.url} gives no log-probabilities of the prompt (echo and logprobs of completions); "
                    "without them titles cannot be scored: serve the model with vLLM"
                )
            if read != asked or len(logps) not in (length, length + 1):
                raise ModelError(
                    f"{self.client.url} reads a question of {asked} tokens as {read} and one of {length} as "
                    f"{len(logps)}: another tokenizer, or tokens added at the beginning. Is `tokenizer` that of "
                    f"{self.client.model!r}?"
                    + (" Servers that take token ids need `prompts: tokens`." * self.as_text)
                )
            own = logps[len(part.prompt) : length]
            if not all(_is_number(logp) for logp in (*logps[1:length], *own)):  # before the first token is nothing
                raise self._strange({"token_logprobs": own})
            yield float(np.sum(np.array(own, dtype=np.float64)))

    def _text(self, answer: Any) -> str:
        """What was generated after one prompt."""
        text = self._choices(answer, 1)[0].get("text")
        if not isinstance(text, str):
            raise self._strange(answer)
        return text

    def _choices(self, answer: Any, count: int) -> list[dict[str, Any]]:
        """The answers to `count` prompts, in their order."""
        found = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
            raise self._strange(answer)
        if len(found) != count:
            raise ModelError(f"{self.client.url} gives {len(found)} answers to {count} prompts of one request")
        by_index = {choice["index"]: choice for choice in found if isinstance(choice.get("index"), int)}
        if sorted(by_index) != list(range(count)):
            raise self._strange(answer)
        return [by_index[n] for n in range(count)]

    def _field(self, owner: dict[str, Any], name: str, kind: type[Kind], answer: Any) -> Kind:
        """A field of a part of `answer`; empty where it is not there."""
        value = owner.get(name)
        if not isinstance(value, kind | None):
            raise self._strange(answer)
        return kind() if value is None else value

    def _strange(self, answer: Any) -> ModelError:
        return self.client.strange("completions", answer)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < sys.float_info.max


def _parts(choices: ChoiceSet, size: int) -> Iterator[ChoiceSet]:
    """The question in requests of at most `size` candidates."""
    for start in range(0, len(choices.answers), size):
        yield ChoiceSet(choices.prompt, choices.answers[start : start + size])
