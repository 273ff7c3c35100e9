"""LLaRA as a ranker: an `LMRanker` whose prompts show items as titles and projected vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from prefrec.data import Catalogue, Query
from prefrec.lm.models import load_model
from prefrec.prompts import ChoiceSet, PromptTemplate
from prefrec.rankers.lm import LMRanker, load_lm
from prefrec.training import encode_examples, load_adapter
from prefrec_systems.llara.embedding import embedding_of, load_projector
from prefrec_systems.llara.prompts import HybridEncoder, hybrid_catalogue


class LlaraRanker(LMRanker):
    """Ranks candidates by the log-probability of their titles after a hybrid prompt.

    Args:
        name, tokenizer, catalogue, template: as in `LMRanker`.
        model: a model with item tokens, in evaluation mode.
        **settings: other arguments of `LMRanker`.

    Raises:
        ModelError: the model has no item tokens.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: PromptTemplate,
        **settings: Any,
    ) -> None:
        super().__init__(name, model, tokenizer, catalogue, template, **settings)
        embedding = embedding_of(model)
        plain = self.encoder
        self.encoder = HybridEncoder(tokenizer, embedding, max_length=plain.max_length, chat=plain.chat)
        self.shown = hybrid_catalogue(catalogue, embedding)

    def _encode(self, queries: Sequence[Query], answers: Any) -> list[ChoiceSet]:
        return encode_examples(
            queries, self.catalogue, [self.template], self.encoder, answers=answers, shown=self.shown
        )


def load_llara_model(base: str, adapter: Path, **loading: Any) -> Any:
    """Return a base with a trainable LLaRA adapter, item tokens and a frozen projector, for alignment.

    Args:
        base: name of the base model.
        adapter: folder of adapter and projector.
        **loading: arguments of `prefrec.lm.models.load_model`.

    Raises:
        ModelError: base, adapter or projector cannot be found or read.
    """
    model = load_adapter(load_model(base, **loading), adapter, is_trainable=True)
    load_projector(model, adapter)
    return model


def load_llara(
    name: str,
    base: str,
    adapter: Path,
    catalogue: Catalogue,
    template: PromptTemplate,
    *,
    loading: Mapping[str, Any] | None = None,
    **settings: Any,
) -> LlaraRanker:
    """Return the ranker of a trained adapter and its projector, on a GPU if there is one.

    Args:
        name, catalogue, template: as in `LMRanker`.
        base: name of the base model.
        adapter: folder of adapter and projector.
        loading: arguments of `prefrec.lm.models.load_model`.
        **settings: other arguments of `LMRanker`.

    Raises:
        ModelError: base, adapter or projector cannot be found or read.
    """
    model, tokenizer = load_lm(base, adapter, **(loading or {}))
    load_projector(model, adapter)
    return LlaraRanker(name, model, tokenizer, catalogue, template, **settings)
