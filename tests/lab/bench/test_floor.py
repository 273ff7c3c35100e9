"""The floor counts what torch counts, and its tokens and pairs are those of the packed layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from prefrec_lab import machine
from prefrec_lab.bench import floor
from prefrec_lab.bench.floor import ModelShape, Tokens, count_tokens, flops, measure_rates, model_shape
from prefrec_lab.stopwatch import Seconds
from tiny import tiny_llama

RANK = 4
answers = st.lists(st.integers(1, 4), min_size=1, max_size=4)
rows = st.lists(st.tuples(st.integers(1, 9), answers), min_size=1, max_size=3)


@given(rows)
def test_tokens_and_pairs_are_those_of_the_packed_rows(shapes):
    sets = [ChoiceSet((1,) * prompt, tuple((2,) * a for a in lengths)) for prompt, lengths in shapes]
    batch, tokens = pack(sets, pad_id=0), count_tokens(sets)
    real = sum(prompt + sum(lengths) - len(lengths) for prompt, lengths in shapes)
    read = len(set(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)))
    padding = batch.input_ids.numel() - real  # each attends to itself
    assert tokens == Tokens(real, read, int(batch.attention_mask.sum()) - padding)


@pytest.mark.parametrize("training", [True, False])
def test_flops_are_those_that_torch_counts(training):
    """Of one row without padding, in eager attention, which makes the products of masked pairs too."""
    model = get_peft_model(tiny_llama(attn_implementation="eager"), lora_config(RANK))
    choices = ChoiceSet(tuple(range(30)), ((1, 2, 3), (4, 5), (6, 7, 8, 9)))
    batch, length = pack([choices], pad_id=0), 36
    with FlopCounterMode(display=False) as counter:
        with torch.set_grad_enabled(training):
            logps = choice_logps(model, batch)
        if training:
            logps.sum().backward()
    tokens = Tokens(body=length, head=batch.logits_to_keep, pairs=length**2)
    ours = flops(model_shape(model.config, RANK), tokens, forward=1, backward=int(training), adapted=1)
    # Not needed, and not made: gradients of the first layer's inputs.
    first = 2 * length * (32 * 32 + 2 * 32 * 16 + 3 * 32 * RANK) if training else 0
    assert counter.get_total_flops() == ours - first


def test_rates_are_of_the_products_asked_for(monkeypatch):
    """With a clock by which every product takes a second, the rate is the products' mean FLOPs."""
    for module in (floor, machine):
        monkeypatch.setattr(module, "time_product", lambda call, device, least_s: (call(), Seconds(1.0, 2.0))[1])
    shape = ModelShape(linears=((2, 3, 5),), head=(2, 7), layers=1, attention=2, lora_rank=1)
    tokens = Tokens(body=11, head=13, pairs=0)
    found = measure_rates(shape, tokens, device="cpu", dtype=torch.float32, square=4, least_s=0.0)
    assert (found.square, found.square_cpu) == (128, 64)
    assert found.layers == (5 * 2 * 11 * 2 * 3 + 2 * 13 * 2 * 7) / 6
    assert found.layers_cpu == found.layers / 2
