"""prefrec.lm.catalogue: a trie in blocks against one full sequence an answer."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from prefrec.lm import catalogue
from prefrec.lm.catalogue import catalogue_logps, trie_layout
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from slow import slow_logps
from tiny import broken, tiny_llama
from tiny_training import draw_adapters

VOCABULARY = 64
LAYOUTS = ["cached", "repeated", "separate"]
PROMPT = tuple(range(1, 25))
END = 9
ANSWERS = (
    (5, 6, END), (5, 6, 7, END), (5, END), (8, END), (5, 6, 7, END), (10, 11, 12, END), (5, 6, 3, 4, END), (5, 6),
)  # fmt: skip
TRIE = Trie.build(ANSWERS)
prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
answers = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12)


def slow(model: torch.nn.Module, prompt=PROMPT, answers=ANSWERS) -> np.ndarray:
    with torch.no_grad():
        return slow_logps(model, ChoiceSet(tuple(prompt), tuple(answers))).numpy()


def assert_equal(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(prompts, answers, st.sampled_from(LAYOUTS), st.integers(1, 20))
def test_equals_the_slow_twin(prompt, answers, layout, block_tokens):
    model = tiny_llama(VOCABULARY)
    got = catalogue_logps(model, prompt, Trie.build(answers), layout=layout, block_tokens=block_tokens)
    assert_equal(got, slow(model, prompt, answers))


def test_the_mask_matters(model, monkeypatch):
    """A node that sees its brothers gives visibly other scores: the test above can fail."""
    monkeypatch.setattr(catalogue, "quick_masks", lambda core, allowed, _: torch.ones_like(allowed))
    assert np.abs(catalogue_logps(model, PROMPT, TRIE, layout="repeated") - slow(model)).max() > 0.1


def test_adapters_are_read_through(model):
    adapted = get_peft_model(copy.deepcopy(model), lora_config(4))
    draw_adapters(adapted, 0.05)
    got = catalogue_logps(adapted, PROMPT, TRIE)
    assert_equal(got, slow(adapted))
    assert np.abs(got - slow(model)).max() > 0.1


class _ForgetsItsCache(type(tiny_llama())):
    """A Llama whose cache does not work, as one of an unknown architecture might."""

    refuses = False

    def forward(self, input_ids=None, cache=None, **kwargs):
        if cache is not None and self.refuses:
            raise ValueError("this cache is of no use")
        if cache is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][..., -input_ids.shape[1] :]
            kwargs["use_cache"] = False
        return super().forward(input_ids=input_ids, **kwargs)


def forgetful(model, refuses=False):
    model.__class__ = _ForgetsItsCache
    model.refuses = refuses
    return model


BROKEN = {
    "forgets its cache": (forgetful, "repeated", "cached: differs from separate rows"),
    "refuses its cache": (partial(forgetful, refuses=True), "repeated", "this cache is of no use"),
    "ignores the mask": (broken, "separate", "differs from separate rows"),
    "ignores positions": (partial(broken, fault="ignores positions"), "separate", "differs from separate rows"),
    "refuses the mask": (partial(broken, fault="refuses the mask"), "separate", "ValueError"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_model_made_to_break_is_found(model, fault):
    change, layout, reason = BROKEN[fault]
    found, why = trie_layout(change(model), PROMPT, TRIE)
    assert found == layout
    assert "'llama'" in why
    assert reason in why
    assert_equal(catalogue_logps(model, PROMPT, TRIE, layout=layout), slow(tiny_llama()))


@pytest.mark.parametrize("titles", [ANSWERS, ANSWERS[:1], ((30,),), ((30,), (31,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_lets_rounding_pass_and_faults_not(dtype, titles):
    """Whatever the trie: of one title, or of titles of one token, nothing branches."""
    trie = Trie.build(titles)
    for seed in range(3):
        assert trie_layout(tiny_llama(VOCABULARY, seed=seed).to(dtype), PROMPT, trie)[0] == "cached"
        for fault in ("ignores the mask", "ignores positions"):
            model = broken(tiny_llama(VOCABULARY, seed=seed), fault).to(dtype)
            assert trie_layout(model, PROMPT, trie)[0] == "separate", (fault, seed)
        assert trie_layout(forgetful(tiny_llama(VOCABULARY, seed=seed).to(dtype)), PROMPT, trie)[0] == "repeated"


def test_no_prompt_no_scores(model):
    with pytest.raises(ValueError, match="the prompt is empty"):
        catalogue_logps(model, (), TRIE)
