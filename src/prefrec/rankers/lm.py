"""A language model as a ranker: scores the candidates' titles in one pass, or answers in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, Query, RankingExample
from prefrec.errors import check_finite
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.items import item_table, next_item_logps, padded_length
from prefrec.lm.models import hold_weights, load_tokenizer
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import language_model
from prefrec.prompts import MAX_LENGTH, ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.prompts.encoding import TOKENIZING
from prefrec.rankers.config import BATCH_SIZE
from prefrec.rankers.matrices import candidate_codes, pad_scores
from prefrec.training.datasets import encode_examples
from prefrec.training.sampler import own_batches
from prefrec.training.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS_PER_PASS = 8192
"""Default: tokens per pass through the model."""
SHARED = 32
"""Most histories of item-ID tokens per call; more are not faster on a CPU."""
MAX_NEW_TOKENS = 20
"""Most tokens of a generated answer, as in the authors' evaluation."""
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
"""All settings of greedy decoding. For missing ones, `generate` would use the model's own generation settings."""
_LOADING = Lock()


class LMRanker:
    """Ranks candidates by the log-probability of their titles under a causal LM, end token included.

    The best candidate is the model's answer if it may only answer with candidates; its hit rate is HR@1. Under
    `accelerate launch` the processes share the examples: all must pass the same ones, and all get all scores.

    Args:
        name: name in tables.
        model: a causal LM or a PEFT model.
        tokenizer: tokenizer of the model.
        catalogue: items and their titles.
        template: the prompt; if the model was trained on several, the first.
        max_length: most tokens of a prompt with its longest answer.
        chat: wrap the prompt in the tokenizer's chat template.
        batch_size: examples per batch.
        max_tokens_per_pass: most tokens per forward pass, padding included. Default: about 20
            examples with 20 candidates.
        objective: `catalogue` normalises over the titles of the catalogue, `tokens` over the whole vocabulary.
        encoder: encoder of prompts and answers. Default: text, by the tokenizer.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: PromptTemplate,
        *,
        max_length: int | None = MAX_LENGTH,
        chat: bool = False,
        batch_size: int = BATCH_SIZE,
        max_tokens_per_pass: int | None = MAX_TOKENS_PER_PASS,
        objective: str = "catalogue",
        encoder: PromptEncoder | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self.template = template
        self.encoder = encoder or PromptEncoder(tokenizer, max_length=max_length, chat=chat)
        self.batch_size = batch_size
        self.max_tokens_per_pass = max_tokens_per_pass
        self.objective = objective

    @cached_property
    def scorer(self) -> ChoiceScorer:
        """The scorer of encoded examples."""
        most, end = self.max_tokens_per_pass, self.encoder.end
        return ChoiceScorer(self.model, end, max_tokens=most, within=self.within, name=self.name)

    @cached_property
    def within(self) -> CatalogueSoftmax | None:
        """The softmax over the catalogue's titles; None: tokens compete with the whole vocabulary."""
        if self.objective == "tokens":
            return None
        titles = [*self.catalogue.titles.values()]
        prompt = self.template.render(self.encoder.shown(titles[:1]), []) + self.encoder.frame[1]
        return CatalogueSoftmax(self.encoder.answers_after(prompt, titles))

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates' titles; −inf in empty columns."""
        if not self.has_items:
            return self.score_sets(self._encode(queries, "candidates"))
        codes = candidate_codes(queries, self.catalogue.index)
        for query in queries if (codes == len(self.catalogue.index)).any() else ():
            self.catalogue.titles_of(query.candidates)  # raises an error that names the unknown item
        share = processes.share(range(len(queries)))
        known = self.item_logps([queries[i].history for i in share])
        rows = zip(track(share, f"{self.name}: scoring"), known, strict=True)
        codes = np.broadcast_to(codes, (len(queries), codes.shape[1]))
        scored = [(i, cast(Any, logps)[codes[i, : len(queries[i].candidates)]]) for i, logps in rows]
        by_row = dict(processes.pool(scored))
        return pad_scores([by_row[i] for i in range(len(queries))])

    @property
    def has_items(self) -> bool:
        """True if the model has item-ID tokens: one call then scores all items for several histories."""
        return self.within is not None and item_table(language_model(self.model)) is not None

    def item_logps(self, histories: Sequence[Sequence[str]]) -> Iterator[NDArray[np.float32] | None]:
        """Yield the log-probabilities [I] of all items after each history; None without item-ID tokens.

        Histories of equal padded length share calls. Errors are those of `CatalogueRanker.recommend`.
        """
        if not self.has_items:
            yield from [None] * len(histories)
            return
        for start in range(0, len(histories), SHARED):
            block, any_item = histories[start : start + SHARED], self.catalogue.ids[:1]
            prompts = [self.choices_after(history, any_item).prompt for history in block]
            lengths = [padded_length(prompt) for prompt in prompts]
            rows: dict[int, NDArray[np.float32]] = {}
            # Only histories of equal padded length share a call, so that scores do not depend on other histories.
            for length in sorted(set(lengths)):
                call = [i for i, own in enumerate(lengths) if own == length]
                logps = next_item_logps(self.model, [prompts[i] for i in call]).cpu().numpy()
                check_finite("the catalogue's items", logps)
                rows.update(zip(call, logps, strict=True))
            yield from (rows[i] for i in range(len(prompts)))

    @torch.no_grad()
    def item_vectors(self) -> tuple[Sequence[str], NDArray[np.float32]] | None:
        """Return the ids [I] of the catalogue's items and the vectors [I, D] of their tokens; None without these."""
        table = item_table(language_model(self.model))
        if table is None or self.within is None:
            return None
        items = torch.arange(len(self.catalogue), device=table.own.device)
        return self.catalogue.ids, table.vectors_in(items).float().cpu().numpy()

    def choices_after(self, history: Sequence[str], items: Sequence[str]) -> ChoiceSet:
        """Return items, given by their ids, as the answers to a prompt with only the history."""
        titles = self.catalogue.titles_of
        return self.encoder.encode(self.template, titles(history), (), titles(items))

    def score_sets(self, sets: Sequence[ChoiceSet]) -> NDArray[np.float64]:
        """Return log-probabilities [n, C] of the answers of n encoded examples; −inf in empty columns."""
        out = np.full((len(sets), max((len(c.answers) for c in sets), default=0)), -np.inf)
        self.scorer.check_layout(sets)
        found = [(rows, self.choice_logps([sets[i] for i in rows])) for rows in self._batches(sets, "scoring")]
        for rows, logps in processes.pool(found):
            out[np.array(rows), : logps.shape[1]] = logps
        return out

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """Return the greedily decoded answer to each example's prompt, of at most 20 tokens."""
        sets = self._encode(examples, "target")
        with torch.no_grad():
            batches = self._batches(sets, "generating")
            found = [(rows, self._generate([sets[i].prompt for i in rows])) for rows in batches]
        texts = {i: text for rows, answers in processes.pool(found) for i, text in zip(rows, answers, strict=True)}
        return [texts[i] for i in range(len(examples))]

    def choice_logps(self, choice_sets: Sequence[ChoiceSet]) -> NDArray[np.float32]:
        """Return log-probabilities [B, C] of the answers of encoded examples, computed as one batch."""
        return self.scorer.score(choice_sets, self.model).cpu().numpy()

    def _encode(self, queries: Sequence[Query], answers: Any) -> list[ChoiceSet]:
        return encode_examples(queries, self.catalogue, [self.template], self.encoder, answers=answers)

    def _batches(self, sets: Sequence[ChoiceSet], doing: str) -> Iterator[list[int]]:
        return track(own_batches(sets, self.batch_size), f"{self.name}: {doing}")

    def _generate(self, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        return greedy_answers(self.model, self.tokenizer, prompts, self.encoder.end, MAX_NEW_TOKENS)


def greedy_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[int, ...]],
    end: int,
    max_new_tokens: int,
) -> list[str]:
    """Return the greedily decoded answers to a batch of prompts, which are token ids; `end` ends an answer."""
    device = next(model.parameters()).device
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=end, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    settings = {"max_new_tokens": max_new_tokens, "pad_token_id": end, "eos_token_id": end, **GREEDY}
    tokens: Tensor = cast(Any, model).generate(**inputs, **settings)
    with TOKENIZING:
        return tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)


def load_lm(base: str, adapter: Path | None = None, **options: Any) -> tuple[nn.Module, Any]:
    """Return a language model and its tokenizer, on a GPU if there is one.

    Args:
        base: embedded model, local folder or Hugging Face id.
        adapter: folder of an adapter, or of a whole model. Default: the base model alone.
        **options: further arguments of `prefrec.training.weights.load_weights`, which also documents errors.
    """
    # While transformers loads a model, it changes torch's defaults for all threads.
    with _LOADING:
        model = load_weights(base, adapter, **options)
        return hold_weights(model).eval(), load_tokenizer(base)
