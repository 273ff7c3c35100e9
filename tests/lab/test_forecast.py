"""prefrec_lab.forecast: counted on shapes as on tensors with data, and what fits on a card."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from prefrec.lm.lora import use_quick_lora
from prefrec.lm.packing import pack
from prefrec.training import lora_config
from prefrec_lab import forecast as module
from prefrec_lab.forecast import CARDS, USABLE, Cost, cost, count_pass, forecast, some_rows

SIZES = {"vocab_size": 3000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
SHAPE = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_cost_what_all_layers_with_data_cost(dtype, monkeypatch):
    monkeypatch.setenv("PREFREC_LINEAR", "torch")  # as on a card
    known = getattr(torch, dtype)
    model = get_peft_model(LlamaForCausalLM(SHAPE).to(known), lora_config(r=4)).train()
    use_quick_lora(model)
    want = count_pass(model, pack(some_rows(3, 5), pad_id=0), known)
    got = cost(SHAPE, 3, negatives=5, rank=4, dtype=dtype)
    assert (got.peak, got.moved) == pytest.approx((want.peak, want.moved), rel=0.01)
    assert want.peak > 2 * sum(p.numel() * p.element_size() for p in model.parameters())


def test_as_many_rows_as_fit():
    card = replace(CARDS["l4-24gb"], memory=3e8)
    found = forecast(SHAPE, card, negatives=5, rank=4)
    assert found.rows > 10
    assert found.peak <= USABLE * card.memory
    more = cost(SHAPE, found.rows + 2, negatives=5, rank=4, dtype="bfloat16").peak
    assert USABLE * card.memory < more == pytest.approx(found.peak, rel=0.1)
    assert found.seconds[0] > found.flops / card.flops


def test_a_model_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(module, "cost", lambda config, rows, **kwargs: Cost(1e10 + rows * 1e9, 1.0))
    for memory, rows in ((10e9, 0), (12e9, 1), (13e9, 2)):
        assert forecast(SHAPE, replace(CARDS["l4-24gb"], memory=memory), negatives=1, rank=4).rows == rows
