"""prefrec.lm.lora: PEFT's numbers and gradients; PEFT itself wherever it does more than add."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from onednn import calls_of
from prefrec.cpu import linear
from prefrec.lm import lora as quick_lora
from prefrec.lm.lora import NarrowLora, NarrowLora4bit, OneDNNLora, use_quick_lora
from prefrec.training import lora_config
from prefrec.training.adapters import add_reference_adapter, reference_of
from quantized import skip_where_it_does_not_run
from tiny import tiny_llama
from tiny_training import draw_adapters

pytestmark = pytest.mark.skipif(not linear.has_onednn(), reason="this torch was built without oneDNN")


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setenv("PREFREC_LINEAR", "onednn")
    return calls_of(monkeypatch, quick_lora, "_add_product")


def adapted(*, bias=False, seed=0, **more):
    """Two layers with adapters that do something."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Linear(20, 12, bias=bias))
    model = get_peft_model(layers, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "1"], **more))
    draw_adapters(model, 1.0)
    return model


def assert_alike(got, want, rtol=1e-4):
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-4)


def run(model, x, slope):
    """Output, and gradients of the input and of all that is trained."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    out.backward(slope)
    return [out.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def quick(model):
    use_quick_lora(model)
    return [m for m in model.modules() if isinstance(m, LoraLinear)]


@given(shape=st.lists(st.integers(1, 5), max_size=2), bias=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_numbers_and_gradients_are_those_of_peft(shape, bias, seed):
    model = adapted(bias=bias, seed=seed)
    x, slope = torch.randn(*shape, 12), torch.randn(*shape, 12)
    want = run(model, x, slope)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFREC_LINEAR", "onednn")
        assert {type(m) for m in quick(model)} == {OneDNNLora}
        got = run(model, x, slope)
    assert len(got) == len(want) == 2 + 4
    assert_alike(got, want)


def two(model):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0", "1"]))
    model.base_model.set_adapter(["default", "other"])


MORE = {
    "dropout": ({"lora_dropout": 0.5}, nn.Module.train),
    "disabled": ({}, lambda model: model.disable_adapter_layers()),
    "merged": ({}, lambda model: model.merge_adapter()),
    "two at once": ({}, two),
    "DoRA": ({"use_dora": True}, nn.Module.train),
    "biased": ({"lora_bias": True}, nn.Module.train),
}


@pytest.mark.parametrize("more", MORE)
def test_peft_does_what_is_more_than_adding(more, counted):
    config, change = MORE[more]
    model = adapted(bias=True, **config)
    change(model)
    x, slope = torch.randn(3, 12), torch.randn(3, 12)
    torch.manual_seed(1)
    want = run(model, x, slope)
    assert {type(m) for m in quick(model)} == {OneDNNLora}
    torch.manual_seed(1)
    assert_alike(run(model, x, slope), want)
    assert not counted


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_narrow_product_is_scaled(dropout, autocast, monkeypatch):
    monkeypatch.setenv("PREFREC_LINEAR", "torch")
    model = adapted(bias=True, lora_dropout=dropout)
    x, slope = torch.randn(2, 3, 12), torch.randn(2, 3, 12)
    wide = calls_of(monkeypatch, torch, "addmm")

    def ask():
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return run(model, x, slope)

    want = ask()
    assert not wide
    assert {type(m) for m in quick(model)} == {NarrowLora}
    got = ask()
    assert len(wide) == 2
    assert len(got) == len(want) == 2 + 4
    for mine, other in zip(got, want, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=0, atol=(0.05 if autocast else 1e-5) * float(other.abs().max()))


def test_a_base_in_4_bits(monkeypatch):
    skip_where_it_does_not_run()
    import bitsandbytes as bnb

    torch.manual_seed(0)
    base = bnb.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layers = nn.Sequential(base).to("cpu")  # quantises
    layers.is_loaded_in_4bit = True
    model = get_peft_model(layers, LoraConfig(r=4, target_modules=["0"]))
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    wide = calls_of(monkeypatch, torch, "addmm")
    x, slope = torch.randn(3, 64), torch.randn(3, 128)
    want = run(model, x, slope)
    use_quick_lora(model)
    assert type(model.base_model.model[0]) is NarrowLora4bit
    got = run(model, x, slope)
    assert len(wide) == 1
    assert_alike(got, want, rtol=1e-5)


@pytest.mark.parametrize("why", ["switched off", "bfloat16", "autocast", "trained base", "watched"])
def test_it_steps_aside(why, counted, monkeypatch):
    seen = []
    model, dtype = adapted(), torch.bfloat16 if why == "bfloat16" else torch.float32
    if why == "switched off":
        monkeypatch.setenv("PREFREC_LINEAR", "torch")
    layers = quick(model)
    assert {type(m) for m in layers} == {NarrowLora if why == "switched off" else OneDNNLora}
    model.to(dtype)
    if why == "trained base":
        model.requires_grad_(True)
    if why == "watched":
        for layer in layers:
            layer.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        model(torch.randn(3, 12, dtype=dtype)).float().sum().backward()
    assert not counted
    assert len(seen) == (2 if why == "watched" else 0)
    assert (layers[0].base_layer.weight.grad is None) == (why != "trained base")


def test_policy_and_reference_of_a_language_model(counted):
    model = get_peft_model(tiny_llama(), lora_config())
    draw_adapters(model, 0.1)
    add_reference_adapter(model)
    draw_adapters(model, 0.1, "lora_B.default")
    ids = torch.arange(12)[None]

    @torch.no_grad()
    def ask():
        policy = model(ids).logits
        with reference_of(model):
            return torch.cat([policy, model(ids).logits])

    want = ask()
    assert (want[0] - want[1]).abs().max() > 0.1
    use_quick_lora(model)
    torch.testing.assert_close(ask(), want, rtol=0, atol=1e-3)
    assert len(counted) == 2 * 14, "seven layers in each of two blocks, by policy and reference"
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, want[:1], rtol=0, atol=1e-3)
