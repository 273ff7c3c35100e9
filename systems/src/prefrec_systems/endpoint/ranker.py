"""A model behind an OpenAI-compatible server as a ranker: the log-probabilities of echoed prompts are its scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.prompts import MAX_LENGTH, ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.rankers.matrices import pad_scores
from prefrec.training import encode_examples
from prefrec_systems.endpoint.client import Completion, OpenAIClient

PROMPTS_A_REQUEST = 64
"""Prompts in one request, as token ids. Texts go one by one: not all servers take lists of them."""


@dataclass(eq=False)
class EndpointRanker:
    """Ranks candidates by the log-probability of their titles, end token included, under a model behind a server.

    Prompts and answers are encoded by the same template and encoder as `LMRanker`'s. For each candidate, prompt and
    answer are sent to `/completions` with `echo` and `logprobs`, and the log-probabilities of the answer's tokens
    are added up. With `prompts="tokens"` the server gets the very token ids, so that scores differ from those of
    `LMRanker` on the same weights by rounding only. With `prompts="text"` it gets their text, and must read it as
    the same number of tokens. Models that echo no log-probabilities can still `generate`.

    Under `accelerate launch` the processes share the rows. Arguments besides `client` and `prompts` are those of
    `LMRanker`.
    """

    name: str
    client: OpenAIClient
    tokenizer: PreTrainedTokenizerBase
    catalogue: Catalogue
    template: PromptTemplate
    _: KW_ONLY
    max_length: int | None = MAX_LENGTH
    chat: bool = False
    prompts: Literal["tokens", "text"] = "tokens"

    def __post_init__(self) -> None:
        self.encoder = PromptEncoder(self.tokenizer, max_length=self.max_length, chat=self.chat)
        self.as_text = self.prompts == "text"

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates' titles; −inf if a row has fewer candidates.

        Raises:
            ModelError: the server is away, refuses the question, echoes no log-probabilities, or reads other tokens.
        """
        sets = self._encode(examples, "candidates")
        size = 1 if self.as_text else PROMPTS_A_REQUEST
        requests = []
        for row in processes.share(range(len(sets))):
            prompt, answers = sets[row].prompt, sets[row].answers
            parts = [answers[start : start + size] for start in range(0, len(answers), size)]
            requests += [((row, ChoiceSet(prompt, part)), [prompt + answer for answer in part]) for part in parts]
        scores: dict[int, list[float]] = {}
        # One token is generated and thrown away: some servers refuse to generate none.
        for (row, part), reply in self._ask(requests, "scoring", max_tokens=1, echo=True, logprobs=1):
            scores.setdefault(row, []).extend(self._logps(part, reply))
        by_row = dict(processes.pool(list(scores.items())))
        return pad_scores([by_row[row] for row in range(len(sets))])

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the answer (at most 20 new tokens) to each example's prompt at temperature 0; raises as `score`."""
        prompts = [choices.prompt for choices in self._encode(examples, "target")]
        requests = [(i, [prompts[i]]) for i in processes.share(range(len(prompts)))]
        replies = self._ask(requests, "generating", max_tokens=MAX_NEW_TOKENS)
        by_row = dict(processes.pool([(i, reply.choices[0].text) for i, reply in replies]))
        return [by_row[i] for i in range(len(prompts))]

    def _encode(self, examples: Sequence[RankingExample], answers: Any) -> list[ChoiceSet]:
        return encode_examples(examples, self.catalogue, [self.template], self.encoder, answers=answers)

    def _ask(
        self, requests: Sequence[tuple[Any, Sequence[tuple[int, ...]]]], doing: str, **fields: Any
    ) -> Iterator[tuple[Any, Completion]]:
        """Yield the key of each request (key, prompts) with the reply, which has one choice per prompt."""
        if not requests:  # then no server is needed
            return
        bodies = ({"prompt": self._as_sent(prompts), "temperature": 0, **fields} for _, prompts in requests)
        replies = self.client.many(self.client.completions, bodies)
        for (key, prompts), reply in zip(track(requests, f"{self.name}: {doing}"), replies, strict=True):
            given, count = len(reply.choices), len(prompts)
            if given != count:
                raise ModelError(f"{self.client.url} gives {given} answers to {count} prompts of one request")
            yield key, reply

    def _as_sent(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """Return prompts in the form in which they are sent: ids, or the text of the only one."""
        if not self.as_text:
            return [list(ids) for ids in prompts]
        (ids,) = prompts
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _logps(self, part: ChoiceSet, reply: Completion) -> Iterator[float]:
        """Yield the log-probability of each of the part's answers: a sum over its tokens, which end the prompt."""
        sent = sum(len(part.prompt) + len(ids) for ids in part.answers)
        read = (reply.usage or {}).get("prompt_tokens", sent)
        for choice, ids in zip(reply.choices, part.answers, strict=True):
            length = len(part.prompt) + len(ids)
            logps = choice.logprobs.token_logprobs if choice.logprobs else []
            if len(logps) <= 1:
                raise ModelError(
                    f"{self.client.url} gives no log-probabilities of the prompt (echo and logprobs of completions); "
                    "without them titles cannot be scored: serve the model with vLLM"
                )
            # Some servers echo the prompt alone, others add the generated token.
            if read != sent or len(logps) not in (length, length + 1):
                raise ModelError(
                    f"{self.client.url} reads a question of {sent} tokens as {read} and one of {length} as "
                    f"{len(logps)}: another tokenizer, or tokens added at the beginning. Is `tokenizer` that of "
                    f"{self.client.model!r}?"
                    + (" Servers that take token ids need `prompts: tokens`." * self.as_text)
                )
            if None in logps[1:length]:
                raise self.client.strange("completions", str(reply))
            yield float(np.sum(np.array(logps[len(part.prompt) : length], dtype=np.float64)))
