"""A language model as a ranker."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from prefrec.data import Catalogue
from prefrec.prompts import load_template
from prefrec.rankers import LMRanker
from tiny_lists import CATALOGUE


@pytest.fixture
def lm_of(model: LlamaForCausalLM, bpe_tokenizer: PreTrainedTokenizerBase) -> Callable[..., LMRanker]:
    """Makes rankers of the tiny model; a test says what is different by keywords."""

    def make(*, template: str = "movies/1", catalogue: Catalogue = CATALOGUE, **settings: Any) -> LMRanker:
        of = (settings.pop("model", model), bpe_tokenizer, catalogue, load_template(template))
        return LMRanker("lm", *of, **{"objective": "tokens"} | settings)

    return make
