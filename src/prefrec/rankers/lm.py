"""A language model as a ranker: scores the candidates' titles in one pass, or answers in text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefrec.console import track, warn
from prefrec.data import Catalogue, RankingExample
from prefrec.models import load_model, load_tokenizer
from prefrec.packing import pack
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.scoring import choice_logps, language_model, layout_for, verified_layout
from prefrec.training import encode_examples, load_adapter

MAX_NEW_TOKENS = 20
"""Length of a generated answer, as in the authors' evaluation."""


GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
"""Said in full: what is left unsaid, `generate` takes from the model's own generation settings."""


class LMRanker:
    """Ranks candidates by the log-probability of their titles, end token included, under a causal LM.

    The answer constrained to the candidates is the one with the highest score: valid by construction, and
    its hit rate is HR@1.

    Args:
        name: shown in tables.
        model: a causal LM or a PEFT model, in evaluation mode.
        tokenizer: of the model.
        catalogue: titles of all items.
        template: the prompt; where several were trained on, the first.
        max_length: tokens of a prompt with its longest answer.
        chat: wrap the prompt by the tokenizer's chat template.
        batch_size: examples a pass.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: PromptTemplate,
        *,
        max_length: int | None = 1024,
        chat: bool = False,
        batch_size: int = 8,
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self.template = template
        self.encoder = PromptEncoder(tokenizer, max_length=max_length, chat=chat)
        self.batch_size = batch_size
        self.row_layout, self._layout_reason = layout_for(language_model(model).config)
        self._layout_is_settled = False

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Log-probabilities [B, C] of the candidates' titles; −inf where a row has fewer candidates."""
        sets = self._encode(examples, "candidates")
        width = max((len(e.candidates) for e in examples), default=0)
        out = np.full((len(examples), width), -np.inf)
        if sets:
            self._settle_layout(max(sets, key=lambda c: c.length))
        with torch.no_grad():
            for rows in self._batches(sets, f"{self.name}: scoring"):
                batch = pack([sets[i] for i in rows], pad_id=self.encoder.end, layout=self.row_layout)
                logps = choice_logps(self.model, batch.to(self._device())).cpu().numpy()
                out[np.array(rows), : logps.shape[1]] = logps
        return out

    def generate(self, examples: Sequence[RankingExample]) -> list[str]:
        """The greedily decoded answer (at most 20 new tokens) to each example's prompt."""
        sets = self._encode(examples, "target")
        out = [""] * len(examples)
        with torch.no_grad():
            for rows in self._batches(sets, f"{self.name}: generating"):
                for i, text in zip(rows, self._generate([sets[i].prompt for i in rows]), strict=True):
                    out[i] = text
        return out

    def _settle_layout(self, choice_set: ChoiceSet) -> None:
        """Before the first batch: try a packed row, and say so where rows are not packed."""
        if self._layout_is_settled:
            return
        self._layout_is_settled = True
        if self.row_layout == "packed":
            self.row_layout, self._layout_reason = verified_layout(
                self.model, choice_set, self.encoder.end, self.row_layout
            )
        if self.row_layout == "separate":
            warn(f"{self.name}: scoring one sequence an answer, which is slower: {escape(self._layout_reason)}")

    def _encode(self, examples: Sequence[RankingExample], answers: Any) -> list[ChoiceSet]:
        return encode_examples(examples, self.catalogue, [self.template], self.encoder, answers=answers)

    def _batches(self, sets: Sequence[ChoiceSet], description: str) -> Iterator[list[int]]:
        """Indices of rows of like length, the longest first: memory runs out at once or never."""
        order = sorted(range(len(sets)), key=lambda i: -sets[i].length)
        for start in track(range(0, len(order), self.batch_size), description):
            yield order[start : start + self.batch_size]

    def _generate(self, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self.encoder.end)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        tokens: Tensor = cast(Any, self.model).generate(
            input_ids=ids.to(self._device()),
            attention_mask=mask.to(self._device()),
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=self.encoder.end,
            eos_token_id=self.encoder.end,
            **GREEDY,
        )
        return self.tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_lm(base: str, adapter: Path | None = None, *, dtype: str = "bfloat16") -> tuple[nn.Module, Any]:
    """A base model, with an adapter where one is given, and its tokenizer; ready to score.

    Args:
        base: a name for `prefrec.models.load_model`.
        adapter: folder of a PEFT adapter.
        dtype: of the base.

    Raises:
        ModelError: base or adapter cannot be found or read.
    """
    model: nn.Module = load_model(base, dtype=dtype)
    if adapter is not None:
        # In the base's own precision: the same numbers as autocast gives in training, without its casts.
        model = load_adapter(model, adapter, autocast_adapter_dtype=False)
    return model.eval(), load_tokenizer(base)
