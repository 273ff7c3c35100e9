"""The published way, written out, is the same mathematics as prefrec's fast one."""

import pytest
import torch
from peft import get_peft_model

from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from prefrec_lab.bench.published import full_sequence_logps, published_loss, trainable
from slow import slow_logps
from tiny import tiny_llama

ROWS = [
    ChoiceSet((5, 6, 7, 8, 9, 10), ((11, 12, 2), (13, 2), (14, 15, 16, 2), (17, 2))),
    ChoiceSet((21, 22, 23), ((24, 2), (25, 26, 2), (27, 2), (28, 29, 30, 31, 2))),
]


@pytest.fixture
def adapted():
    """A base with an adapter that differs from it."""
    model = get_peft_model(tiny_llama(), lora_config(4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_full_sequences_score_as_a_loop_over_tokens_does(model):
    logps = full_sequence_logps(model, ROWS, pad_id=0)
    torch.testing.assert_close(logps, torch.stack([slow_logps(model, c) for c in ROWS]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_loss_and_gradients_are_those_of_the_packed_step(adapted, beta):
    policy, batch = full_sequence_logps(adapted, ROWS, pad_id=0), pack(ROWS, pad_id=0)
    with torch.no_grad(), adapted.disable_adapter():
        slow_reference, reference = full_sequence_logps(adapted, ROWS, pad_id=0), choice_logps(adapted, batch)
    slow = published_loss(policy, slow_reference, beta).mean()
    fast = softmax_dpo_loss(choice_logps(adapted, batch), reference, beta).losses.mean()
    slow_gradients, fast_gradients = (torch.autograd.grad(loss, trainable(adapted)) for loss in (slow, fast))
    assert abs(fast.item() - 1.3863) > 0.005  # away from ln(1 + N), where any answers would do
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)
    assert sum(float(g.abs().sum()) for g in fast_gradients) > 1
    for ours, theirs in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)
