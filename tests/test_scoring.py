"""prefrec.scoring: packed scores and gradients against one full sequence an answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.packing import pack
from prefrec.prompts import ChoiceSet
from prefrec.scoring import choice_logps, layout_for
from slow import slow_logps
from tiny import tiny_llama

VOCABULARY = 64
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9).map(tuple)
choice_sets = st.lists(
    st.builds(ChoiceSet, tokens, st.lists(tokens, min_size=1, max_size=5).map(tuple)), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=30)
@given(choice_sets, st.sampled_from(["packed", "separate"]))
def test_equals_the_slow_twin(sets, layout):
    model = tiny_llama(VOCABULARY)
    with torch.no_grad():
        got = choice_logps(model, pack(sets, pad_id=0, layout=layout))
        for row, choices in zip(got, sets, strict=True):
            want = slow_logps(model, choices)
            torch.testing.assert_close(row[: len(want)], want, rtol=0, atol=1e-4)
            assert (row[len(want) :] == -torch.inf).all()


def test_the_mask_matters():
    """The scaled weights make a plain causal mask visibly wrong: the test above can fail."""
    model = tiny_llama(VOCABULARY)
    choices = ChoiceSet((1, 2, 3, 4), ((5, 6), (7, 8), (9, 10)))
    batch = pack([choices], pad_id=0)
    causal = torch.ones_like(batch.attention_mask).tril()
    with torch.no_grad():
        wrong = choice_logps(model, type(batch)(**{**batch.as_dict(), "attention_mask": causal}))
        assert (wrong[0] - slow_logps(model, choices)).abs().max() > 0.1


def test_gradients_equal_the_slow_twins():
    sets = [ChoiceSet((1, 2, 3), ((4, 9), (5, 6, 9), (7, 9))), ChoiceSet((8, 3), ((2, 9), (9,), (1, 1, 9)))]
    weights = torch.tensor([[1.0, -0.5, 0.25], [0.3, -1.0, 2.0]])
    grads = []
    for packed in (True, False):
        model = tiny_llama(VOCABULARY)
        logps = (
            choice_logps(model, pack(sets, pad_id=0)) if packed else torch.stack([slow_logps(model, c) for c in sets])
        )
        (weights * logps).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    scale = grads[1].abs().max()
    torch.testing.assert_close(grads[0] / scale, grads[1] / scale, rtol=0, atol=1e-4)


def test_score_does_not_depend_on_company():
    model = tiny_llama(VOCABULARY)
    lonely = ChoiceSet((5, 6, 7), ((1, 2), (3,)))
    company = ChoiceSet(tuple(range(20)), ((4,) * 8, (9,), (11, 12)))
    with torch.no_grad():
        alone = choice_logps(model, pack([lonely], pad_id=0))[0]
        together = choice_logps(model, pack([company, lonely], pad_id=0))[1, :2]
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "layout", "reason"),
    [
        ({}, "packed", "llama"),
        ({"model_type": "mamba2"}, "separate", "mamba2"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "separate", "sliding_attention"),
        ({"model_type": "mistral", "sliding_window": 64}, "separate", "window of 64"),
        ({"_attn_implementation": "eager"}, "separate", "eager"),
        ({"model_type": "falcon", "alibi": True}, "separate", "ALiBi"),
    ],
)
def test_layout_falls_back_with_a_reason(changes, layout, reason):
    class Config:
        model_type = "llama"
        _attn_implementation = "sdpa"

    config = Config()
    for name, value in changes.items():
        setattr(config, name, value)
    got, why = layout_for(config)
    assert got == layout
    assert reason in why
