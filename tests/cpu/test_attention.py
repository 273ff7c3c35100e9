"""prefrec.cpu.attention: torch's numbers and gradients, in whole models too; aside for whatever else is asked."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from onednn import always_by_onednn
from prefrec.cpu import attention as onednn_attention
from prefrec.cpu import linear
from prefrec.cpu.attention import ONEDNN, register
from prefrec.cpu.linear import use_onednn
from prefrec.lm.architectures import layout_for
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import ChoiceSet
from tiny import tiny_llama as plain_llama

register()
pytestmark = pytest.mark.skipif(not linear.has_onednn(), reason="this torch was built without oneDNN")
SETS = [
    ChoiceSet(tuple(range(1, 30)), ((40, 41, 9), (42, 9), (43, 44, 45, 9))),
    ChoiceSet(tuple(range(5, 20)), ((46, 9), (47, 48, 9))),
]
SIZES = st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 20), st.integers(0, 9))
DEPTHS = st.tuples(st.integers(1, 9), st.integers(1, 9))
LAYER = SimpleNamespace(num_key_value_groups=1, is_causal=True)
CAUSAL = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()


@pytest.fixture
def always(monkeypatch):
    return always_by_onednn(monkeypatch)


def tiny_llama():
    """A model whose linear layers go to oneDNN, where that is asked for."""
    model = plain_llama()
    use_onednn(model)
    return model


def attend(query, key, value, mask, **more):
    heads = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True)
    onednn_attention.read_by_onednn(mask)
    return ALL_ATTENTION_FUNCTIONS[ONEDNN](heads, query, key, value, mask, **more)[0]


def slow(query, key, value, mask, scaling):
    """Every score, one softmax, no kernel: [R, H, Q, D] give [R, Q, H, E]."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = (scaling * query @ key.transpose(2, 3)).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@given(SIZES, DEPTHS, st.sampled_from([1.0, 0.3]), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_numbers_and_gradients_are_those_of_the_slow_twin(sizes, depths, scaling, one_mask, seed):
    torch.manual_seed(seed)
    rows, groups, times, queries, before = sizes
    keys = queries + before

    def heads(count, length, depth):
        return torch.randn(rows, length, count, depth).transpose(1, 2).requires_grad_()

    inputs = heads(groups * times, queries, depths[0]), heads(groups, keys, depths[0]), heads(groups, keys, depths[1])
    mask = (torch.rand(1 if one_mask else rows, 1, queries, keys) < 0.4).tril(before)
    mask |= torch.eye(queries, keys, dtype=torch.bool)  # every query sees something
    slope = torch.randn(rows, queries, groups * times, depths[1])

    def run(way):
        out = way(*inputs, mask, scaling=scaling)
        return [out, *torch.autograd.grad(out, inputs, slope)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn_attention, "LEAST", 0)
        patch.setattr(onednn_attention, "QUERIES", 4)
        got = run(attend)
    assert got[0].is_contiguous()
    for mine, want in zip(got, run(slow), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_disturbs_no_other(always):
    query, key, value = (torch.randn(1, 1, 12, 4) for _ in range(3))
    mask = CAUSAL.clone()
    mask[:, :, :9] = False
    got = attend(query, key, value, mask)
    torch.testing.assert_close(got[:, 9:], slow(query, key, value, mask, 0.5)[:, 9:], rtol=1e-4, atol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v, m: ((q.double(), k.double(), v.double(), m), {}),
        lambda q, k, v, m: ((q, k, v, None), {}),
        lambda q, k, v, m: ((q, k, v, torch.zeros(m.shape).masked_fill(~m, -torch.inf)), {}),
        lambda q, k, v, m: ((q, k, v, m.expand(-1, 2, -1, -1)), {}),
        lambda q, k, v, m: ((q, k, v, m), {"dropout": 0.5}),
        lambda q, k, v, m: ((q, k, v, m), {"position_bias": torch.randn(1, 2, 6, 6)}),
    ],
    ids=["float64", "no mask", "additive mask", "mask of heads", "dropout", "position bias"],
)
def test_what_is_not_ours_is_given_to_sdpa(change, always):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 4) for _ in range(3))
    args, more = change(query, key, value, CAUSAL[..., :6, :6])
    if args[3] is not None:
        onednn_attention.read_by_onednn(args[3])
    torch.manual_seed(1)
    got = ALL_ATTENTION_FUNCTIONS[ONEDNN](LAYER, *args, **more)[0]
    torch.manual_seed(1)
    assert torch.equal(got, ALL_ATTENTION_FUNCTIONS["sdpa"](LAYER, *args, **more)[0])
    assert not always


def scores(model):
    model.zero_grad()
    logps = choice_logps(model, pack(SETS, pad_id=0))
    logps[logps.isfinite()].sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_whole_model_has_the_scores_and_gradients_of_sdpa(checkpointing, always, monkeypatch):
    model = tiny_llama().train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got = scores(model), scores(model)  # of the second batch with what the first has left
    assert always
    assert layout_for(model.config)[0] == "packed"
    with torch.no_grad():
        choice_logps(model, pack(SETS, pad_id=0, layout="separate"))
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    monkeypatch.setenv("PREFREC_LINEAR", "torch")
    always.clear()
    logps, gradient = scores(model)
    assert not always
    for mine in got:
        torch.testing.assert_close(mine[0], logps, rtol=0, atol=1e-4)
        torch.testing.assert_close(mine[1] / gradient.abs().max(), gradient / gradient.abs().max(), rtol=0, atol=1e-4)
