"""prefrec.lm.cpu.attention: torch's numbers and gradients, in whole models too; aside for whatever else is asked."""

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from onednn import always_by_onednn
from prefrec.lm.architectures import layout_for
from prefrec.lm.attention import quick_masks
from prefrec.lm.catalogue import catalogue_logps
from prefrec.lm.cpu import attention as onednn_attention
from prefrec.lm.cpu import linear
from prefrec.lm.cpu.attention import ONEDNN, register
from prefrec.lm.cpu.linear import restore_linear, use_onednn
from prefrec.lm.masks import attention_implementation
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from tiny import tiny_llama as plain_llama

register()

pytestmark = pytest.mark.skipif(not linear.has_onednn(), reason="this torch was built without oneDNN")

SETS = [
    ChoiceSet(tuple(range(1, 30)), ((40, 41, 9), (42, 9), (43, 44, 45, 9))),
    ChoiceSet(tuple(range(5, 20)), ((46, 9), (47, 48, 9))),
]


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


@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    times=st.integers(1, 3),
    queries=st.integers(1, 20),
    before=st.integers(0, 9),
    depths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scaling=st.sampled_from([1.0, 0.3]),
    one_mask=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_numbers_and_gradients_are_those_of_the_slow_twin(
    rows, groups, times, queries, before, depths, scaling, one_mask, seed
):
    torch.manual_seed(seed)
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


def test_keys_that_nobody_sees_are_not_multiplied(always, monkeypatch):
    shapes, product = [], onednn_attention.multiply
    monkeypatch.setattr(
        onednn_attention, "multiply", lambda x, w: (shapes.append((len(x), len(w))), product(x, w))[1]
    )
    query, key, value = (torch.randn(1, 2, 24, 4) for _ in range(3))
    attend(query, key, value, torch.ones(1, 1, 24, 24, dtype=torch.bool).tril())
    assert shapes[::2] == [(8, 8), (8, 16), (8, 24)] * 2


def test_the_default_type_is_of_no_account(always):
    inputs = [torch.randn(1, 2, 12, 4, requires_grad=True) for _ in range(3)]
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    want = torch.autograd.grad(attend(*inputs, mask).sum(), inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        got = torch.autograd.grad(attend(*inputs, mask.clone()).sum(), inputs)
    finally:
        torch.set_default_dtype(before)
    assert {x.dtype for x in got} == {torch.float32}
    assert all(torch.equal(mine, other) for mine, other in zip(got, want, strict=True))


def test_a_query_that_sees_nothing_disturbs_no_other(always):
    query, key, value = (torch.randn(1, 1, 12, 4) for _ in range(3))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
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
    args, more = change(query, key, value, torch.ones(1, 1, 6, 6, dtype=torch.bool).tril())
    layer = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    if args[3] is not None:
        onednn_attention.read_by_onednn(args[3])
    torch.manual_seed(1)
    got = ALL_ATTENTION_FUNCTIONS[ONEDNN](layer, *args, **more)[0]
    torch.manual_seed(1)
    assert torch.equal(got, ALL_ATTENTION_FUNCTIONS["sdpa"](layer, *args, **more)[0])
    assert not always


def test_few_scores_are_left_to_sdpa(always, monkeypatch):
    monkeypatch.setattr(onednn_attention, "LEAST", 2 * 6 * 6 + 1)
    query, mask = torch.randn(1, 4, 6, 4), torch.ones(1, 1, 6, 6, dtype=torch.bool)
    attend(query, query[:, :2], query[:, :2], mask)
    assert not always
    longer = F.pad(query, (0, 0, 0, 1))
    attend(longer, longer[:, :2], longer[:, :2], torch.ones(1, 1, 7, 7, dtype=torch.bool))
    assert always


def test_a_mask_is_cut_once_and_forgotten_with_it():
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    made = onednn_attention.blocks(mask)
    assert onednn_attention.blocks(mask) is made
    assert onednn_attention.blocks(mask.clone()) is not made
    count = len(onednn_attention._CACHE)
    del mask, made
    gc.collect()
    assert len(onednn_attention._CACHE) < count


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


def test_a_catalogue_is_read_by_it(always, monkeypatch):
    model = tiny_llama()
    trie = Trie.build([answer for choices in SETS for answer in choices.answers])
    got = [catalogue_logps(model, SETS[0].prompt, trie, layout=layout) for layout in ("cached", "repeated")]
    assert always
    monkeypatch.setenv("PREFREC_LINEAR", "torch")
    want = catalogue_logps(model, SETS[0].prompt, trie)
    for mine in got:
        torch.testing.assert_close(torch.from_numpy(mine), torch.from_numpy(want), rtol=0, atol=1e-4)


def test_other_masks_of_the_model_are_read_by_sdpa(always):
    model, batch = tiny_llama(), pack(SETS, pad_id=0)
    want = choice_logps(model, pack(SETS, pad_id=0, layout="separate"))
    quick_masks(model, batch.attention_mask, batch.position_ids)
    assert model.config._attn_implementation == ONEDNN
    assert attention_implementation(model.config) == "sdpa"
    got = choice_logps(model, pack(SETS, pad_id=0, layout="separate"))
    model(torch.ones(2, 70, dtype=torch.long), attention_mask=torch.ones(2, 70).tril(60).long())
    assert not always
    assert torch.equal(got, want)


@pytest.mark.parametrize("why", ["switched off", "not quick", "bfloat16", "eager", "autocast", "by no name"])
def test_it_does_not_stand_in(why, always, monkeypatch):
    model = tiny_llama()
    if why == "switched off":
        monkeypatch.setenv("PREFREC_LINEAR", "torch")
    elif why == "not quick":
        restore_linear(model)
    elif why == "bfloat16":
        model.bfloat16()
    elif why == "eager":
        model.set_attn_implementation("eager")
    elif why == "by no name":
        monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    own = model.config._attn_implementation
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"), torch.no_grad():
        choice_logps(model, pack(SETS, pad_id=0))
    assert model.config._attn_implementation == own
    assert not always
