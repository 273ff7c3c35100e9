"""A model behind an OpenAI-compatible server as a ranker, scored by log-probabilities of echoed prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, Query, RankingExample
from prefrec.errors import ModelError
from prefrec.prompts import MAX_LENGTH, ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.rankers.matrices import pad_scores
from prefrec.training import encode_examples
from prefrec_systems.endpoint.client import Completion, OpenAIClient

PROMPTS_A_REQUEST = 64
"""Prompts per request, as token ids. Texts are sent one by one, because not all servers accept lists of them."""


@dataclass(eq=False)
class EndpointRanker:
    """Ranks candidates by the log-probability of their titles under a served model, end token included.

    Template and encoder are those of `LMRanker`. For each candidate, prompt and answer are sent to `/completions`
    with `echo` and `logprobs`, and the log-probabilities of the answer's tokens are summed. With `prompts="tokens"`
    the server gets token ids, so that scores differ from those of `LMRanker` with the same weights only by rounding.
    With `prompts="text"` it gets text, which it must split into the same number of tokens. Servers that do not echo
    log-probabilities can still `generate`.

    Under `accelerate launch` the processes share the examples. Arguments other than `client` and `prompts` are those
    of `LMRanker`.
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

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates' titles; −inf in empty columns.

        Raises:
            ModelError: the server is unreachable, refuses a request, does not echo log-probabilities, or tokenises
                differently.
        """
        sets = self._encode(queries, "candidates")
        size = 1 if self.as_text else PROMPTS_A_REQUEST
        requests = []
        for row in processes.share(range(len(sets))):
            prompt, answers = sets[row].prompt, sets[row].answers
            parts = [answers[start : start + size] for start in range(0, len(answers), size)]
            requests += [((row, ChoiceSet(prompt, part)), [prompt + answer for answer in part]) for part in parts]
        scores: dict[int, list[float]] = {}
        # Generate one token and ignore it, because some servers refuse to generate none.
        for (row, part), reply in self._ask(requests, "scoring", max_tokens=1, echo=True, logprobs=1):
            scores.setdefault(row, []).extend(self._logps(part, reply))
        by_row = dict(processes.pool(list(scores.items())))
        return pad_scores([by_row[row] for row in range(len(sets))])

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the answer to each prompt at temperature 0, of at most 20 tokens; raise errors of `score`."""
        prompts = [choices.prompt for choices in self._encode(examples, "target")]
        requests = [(i, [prompts[i]]) for i in processes.share(range(len(prompts)))]
        replies = self._ask(requests, "generating", max_tokens=MAX_NEW_TOKENS)
        by_row = dict(processes.pool([(i, reply.choices[0].text) for i, reply in replies]))
        return [by_row[i] for i in range(len(prompts))]

    def _encode(self, queries: Sequence[Query], answers: Any) -> list[ChoiceSet]:
        return encode_examples(queries, self.catalogue, [self.template], self.encoder, answers=answers)

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
                raise ModelError(f"{self.client.url} returns {given} answers to {count} prompts of one request")
            yield key, reply

    def _as_sent(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        """Return prompts as they are sent: token ids, or the text of the only prompt."""
        if not self.as_text:
            return [list(ids) for ids in prompts]
        (ids,) = prompts
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _logps(self, part: ChoiceSet, reply: Completion) -> Iterator[float]:
        """Yield the log-probability of each answer, summed over its tokens at the end of the echoed prompt."""
        sent = sum(len(part.prompt) + len(ids) for ids in part.answers)
        read = (reply.usage or {}).get("prompt_tokens", sent)
        for choice, ids in zip(reply.choices, part.answers, strict=True):
            length = len(part.prompt) + len(ids)
            logps = choice.logprobs.token_logprobs if choice.logprobs else []
            if len(logps) <= 1:
                raise ModelError(
                    f"{self.client.url} does not return log-probabilities of the prompt (echo and logprobs of "
                    "completions), which are needed to score titles: serve the model with vLLM"
                )
            # Some servers echo only the prompt, others add the generated token.
            if read != sent or len(logps) not in (length, length + 1):
                raise ModelError(
                    f"{self.client.url} reads {sent} tokens as {read}, and {length} tokens as {len(logps)}: it has "
                    "another tokenizer, or adds tokens at the beginning. Is `tokenizer` that of "
                    f"{self.client.model!r}?"
                    + (" If the server accepts token ids, set `prompts: tokens`." * self.as_text)
                )
            if None in logps[1:length]:
                raise self.client.strange("completions", str(reply))
            yield float(np.sum(np.array(logps[len(part.prompt) : length], dtype=np.float64)))
