"""prefrec.lm.architectures and prefrec.lm.layout: what a configuration allows, and the check on a few answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from prefrec.lm.architectures import layout_for
from prefrec.lm.layout import PIECE, probe_set, verified_layout
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import ChoiceSet
from slow import slow_logps
from tiny import broken, tiny_llama

VOCABULARY = 64
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9).map(tuple)
answers = st.lists(tokens, min_size=1, max_size=5).map(tuple)
choice_sets = st.lists(st.builds(ChoiceSet, tokens, answers), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("changes", "layout", "reason"),
    [
        ({}, "packed", "llama"),
        ({"model_type": "mamba2"}, "separate", "mamba2"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "packed", "llama"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "separate", "linear_attention"),
        ({"layer_types": ["conv", "full_attention"]}, "separate", "conv"),
        ({"model_type": "mistral", "sliding_window": 64}, "packed", "mistral"),
        ({"_attn_implementation": "eager"}, "packed", "llama"),
        ({"_attn_implementation": "flash_attention_2"}, "separate", "flash_attention_2"),
        ({"_attn_implementation": "flash_attention_3"}, "separate", "flash_attention_3"),
        ({"model_type": "falcon", "alibi": True}, "separate", "ALiBi"),
        ({"model_type": "bloom"}, "separate", "ALiBi"),
        ({"model_type": "hypothetical"}, "packed", "checked on the first batch"),
    ],
)
def test_layout_comes_with_a_reason(changes, layout, reason):
    class Config:
        model_type = "llama"
        _attn_implementation = "sdpa"
        get_text_config = lambda self: self  # noqa: E731

    config = Config()
    for name, value in changes.items():
        setattr(config, name, value)
    got, why = layout_for(config)
    assert got == layout
    assert reason in why


LONG = ChoiceSet(tuple(range(1, 25)), ((30, 31, 9), (32, 33, 9), (34, 9)))
DIFFERS = "differs from separate rows"
FAILS = "the packed layout fails with ValueError: a mask of"


@pytest.mark.parametrize(
    ("fault", "reason"), [("ignores the mask", DIFFERS), ("ignores positions", DIFFERS), ("refuses the mask", FAILS)]
)
def test_the_check_finds_a_model_made_to_break(fault, reason):
    model = broken(tiny_llama(VOCABULARY), fault)
    assert layout_for(model.config)[0] == "packed", "the configuration says nothing"
    layout, why = verified_layout(model, LONG, 0, "packed")
    assert layout == "separate"
    assert reason in why
    assert "'llama'" in why
    with torch.no_grad():
        got = choice_logps(model, pack([LONG], pad_id=0, layout=layout))[0]
    torch.testing.assert_close(got, slow_logps(tiny_llama(VOCABULARY), LONG), rtol=0, atol=1e-4)


class _Mistaken(LlamaForCausalLM):
    """A Llama that takes a mask for nearly what it is."""

    fault = ""

    def forward(self, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() == 4:
            causal = torch.ones_like(attention_mask).tril()
            seen_by_itself = attention_mask.sum(-2, keepdim=True) == 1
            padding = seen_by_itself & (position_ids == 0)[:, None, None]
            if self.fault == "sees padding":
                attention_mask = attention_mask | (causal & padding)
            if self.fault == "sees other answers":
                attention_mask = attention_mask | (causal & ~padding & (position_ids > 0)[:, None, :, None])
        return super().forward(attention_mask=attention_mask, position_ids=position_ids, **kwargs)


def _faulty(fault, **settings):
    model = tiny_llama(VOCABULARY, **settings)
    if fault not in ("sees padding", "sees other answers"):
        return broken(model, fault)
    model.__class__ = _Mistaken
    model.fault = fault
    return model


FAULTS = ["ignores the mask", "ignores positions", "sees padding", "sees other answers"]
SHORT_SETS = {
    "two tokens each": ChoiceSet(LONG.prompt, ((30, 9), (32, 9), (34, 9))),
    "one answer": ChoiceSet(LONG.prompt, LONG.answers[:1]),
    "one token each": ChoiceSet(LONG.prompt, ((30,), (31,))),
    "one answer of one token": ChoiceSet(LONG.prompt, ((30,),)),
    "a short prompt": ChoiceSet((5, 6), ((30, 31, 9), (9,))),
}
"""Sets in which little or nothing branches, or whose prompt cannot be shortened."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_lets_rounding_pass_and_faults_not(dtype):
    for seed in range(5):
        assert verified_layout(tiny_llama(VOCABULARY, seed=seed).to(dtype), LONG, 0, "packed")[0] == "packed"
        for fault in FAULTS:
            layout, why = verified_layout(_faulty(fault, seed=seed).to(dtype), LONG, 0, "packed")
            assert layout == "separate", (fault, seed)
            assert DIFFERS in why


@pytest.mark.parametrize("kind", SHORT_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_does_not_depend_on_what_a_set_shows(dtype, kind):
    choices = SHORT_SETS[kind]
    assert verified_layout(tiny_llama(VOCABULARY).to(dtype), choices, 0, "packed")[0] == "packed"
    for fault in [*FAULTS, "refuses the mask"]:
        assert verified_layout(_faulty(fault).to(dtype), choices, 0, "packed")[0] == "separate", fault


@settings(deadline=None, max_examples=50)
@given(choice_sets, st.integers(1, 20))
def test_a_probe_branches_and_stays_within_the_sets_positions(sets, compared):
    for choices in sets:
        probe = probe_set(choices, compared)
        assert {len(a) for a in probe.answers} == {PIECE}
        assert len(probe.answers) > compared
        assert probe.prompt[-1] == choices.prompt[-1] or choices.length < PIECE + len(choices.prompt)
        assert 16 <= len(probe.prompt) <= max(16, choices.length - PIECE)
        known = {t for part in (choices.prompt, *choices.answers) for t in part}
        assert {t for part in (probe.prompt, *probe.answers) for t in part} <= known
        assert len(known) == 1 or len(set(probe.answers)) > 1


def test_a_model_that_gives_no_numbers_is_not_trusted():
    model = tiny_llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    assert verified_layout(model, LONG, 0, "packed")[0] == "separate"


def test_nothing_is_tried_where_rows_are_separate():
    assert verified_layout(broken(tiny_llama(), "refuses the mask"), LONG, 0, "separate")[0] == "separate"
