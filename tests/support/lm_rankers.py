"""A language model as a ranker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from prefrec.data import Catalogue
from prefrec.prompts import load_template
from tiny_lists import CATALOGUE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from prefrec.rankers import LMRanker


@pytest.fixture
def lm_of(model: LlamaForCausalLM, bpe_tokenizer: PreTrainedTokenizerBase) -> Callable[..., LMRanker]:
    """Makes rankers of the tiny model; a test says what is different by keywords."""

    def make(*, template: str = "movies/1", catalogue: Catalogue = CATALOGUE, **settings: Any) -> LMRanker:
        from prefrec.rankers import LMRanker  # needs torch

        of = (settings.pop("model", model), bpe_tokenizer, catalogue, load_template(template))
        return LMRanker("lm", *of, **{"objective": "tokens"} | settings)

    return make
