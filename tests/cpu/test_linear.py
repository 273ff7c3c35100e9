"""prefrec.cpu.linear: oneDNN layers give the numbers and gradients of torch, and step aside where they must."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn

from onednn import calls_of
from prefrec.cpu import linear
from prefrec.cpu.linear import OneDNNLinear, prefers_onednn, product, restore_linear, use_onednn
from prefrec.errors import ConfigError
from prefrec.training import load_adapter, lora_config
from tiny import tiny_llama

SIZES = st.integers(1, 40)
pytestmark = pytest.mark.skipif(not linear.has_onednn(), reason="this torch was built without oneDNN")


@pytest.fixture
def by_onednn(monkeypatch):
    monkeypatch.setenv("PREFREC_LINEAR", "onednn")


@pytest.fixture
def counted(monkeypatch):
    return calls_of(monkeypatch, linear, "multiply")


def pair(inputs, outputs, *, bias=True, seed=0):
    """A layer of torch, and one of oneDNN with the same weights."""
    torch.manual_seed(seed)
    plain = nn.Linear(inputs, outputs, bias=bias)
    quick = copy.deepcopy(plain)
    quick.__class__ = OneDNNLinear
    return plain, quick


@given(st.lists(st.integers(0, 5), max_size=2), SIZES, SIZES, *[st.booleans()] * 3, st.integers(0, 99))
def test_numbers_and_gradients_are_those_of_torch(shape, inputs, outputs, has_bias, frozen, turned, seed):
    layers = pair(inputs, outputs, bias=has_bias, seed=seed)
    for layer in layers:
        layer.weight.requires_grad_(not frozen)
    x = torch.randn(inputs, *shape, 3).movedim(0, -1) if turned else torch.randn(*shape, 3, inputs)
    slope = torch.randn(*x.shape[:-1], outputs)

    def run(layer):
        given_x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(given_x)
        out.backward(slope)
        return [out, given_x.grad, *(p.grad for p in layer.parameters())]

    want, got = map(run, layers)
    assert [g is None for g in got] == [w is None for w in want]
    for mine, other in zip(got, want, strict=True):
        if other is not None:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("outputs", "inputs"), [(1536, 8), (8, 1536), (300, 300)])
def test_thin_and_square_weights_have_torch_s_gradient(outputs, inputs):
    plain, quick = pair(inputs, outputs)
    x, slope = torch.randn(200, inputs), torch.randn(200, outputs)
    for layer in (plain, quick):
        layer(x).backward(slope)
    torch.testing.assert_close(quick.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_layers_change_and_change_back(by_onednn):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), _OtherLinear(4, 2))
    use_onednn(model)
    assert [type(m) for m in model] == [OneDNNLinear, nn.ReLU, _OtherLinear]
    restore_linear(model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, _OtherLinear]


class _OtherLinear(nn.Linear):
    """As a layer in 4 bits is: a linear layer of another kind."""


def test_other_numbers_are_torch_s(by_onednn, counted):
    layer = OneDNNLinear(4, 3)
    x = torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).device.type == "meta"
    assert product(x.bfloat16(), layer.weight.detach().bfloat16()).dtype == torch.bfloat16
    assert counted == []


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_what_comes_out_can_be_changed_in_place(shape):
    plain, quick = pair(4, 3)
    x = torch.randn(shape)
    for layer in (plain, quick):
        layer(x).mul_(2).add_(1).square().sum().backward()
    torch.testing.assert_close(quick.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def test_transforms_and_traces_are_torch_s(counted):
    layer = OneDNNLinear(4, 3)
    x = torch.randn(5, 4)
    by_weight = torch.func.grad(lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)).sum())
    torch.testing.assert_close(by_weight(layer.weight.detach()), x.sum(0).expand(3, 4))
    traced, compiled = torch.jit.trace(layer, x, check_trace=False), torch.compile(layer, backend="eager")
    for made in (torch.func.vmap(layer), traced, compiled):
        torch.testing.assert_close(made(x), F.linear(x, layer.weight, layer.bias))
    assert counted == []


def test_adapters_are_quickened_where_they_are_read(by_onednn, tmp_path):
    get_peft_model(tiny_llama(), lora_config(2)).save_pretrained(tmp_path)
    model = load_adapter(tiny_llama(), tmp_path)
    assert isinstance(model, PeftModel)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {OneDNNLinear}
    merged = model.merge_and_unload()
    ids = torch.arange(6)[None]
    torch.testing.assert_close(merged(ids).logits, tiny_llama()(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "mkl", "capability", "maker", "expected"),
    [
        ("auto", True, "AVX512", "AuthenticAMD", True),
        ("auto", True, "AVX512", "GenuineIntel", False),
        ("auto", True, "AVX2", "AuthenticAMD", False),
        ("auto", False, "AVX512", "AuthenticAMD", False),
        ("torch", True, "AVX512", "AuthenticAMD", False),
        ("onednn", True, "AVX2", "GenuineIntel", True),
    ],
)
def test_the_rule(monkeypatch, asked, mkl, capability, maker, expected):
    monkeypatch.setenv("PREFREC_LINEAR", asked)
    monkeypatch.setattr(linear.torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(linear.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear, "_maker", lambda: maker)
    monkeypatch.setattr(linear, "_mkl_holds_back", linear._mkl_holds_back.__wrapped__)
    assert prefers_onednn() is expected
    assert linear.linear_backend() == ("onednn" if expected else "torch")


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("PREFREC_LINEAR", "mkl")
    with pytest.raises(ConfigError, match="PREFREC_LINEAR=mkl: expected one of auto, torch, onednn"):
        prefers_onednn()
