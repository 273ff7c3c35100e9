"""prefrec.lm.scoring: packed scores and gradients against one full sequence an answer."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from prefrec.lm import scoring
from prefrec.lm.packing import pack, pack_passes
from prefrec.lm.scoring import answer_token_logps, choice_logps, token_logps
from prefrec.prompts import ChoiceSet
from slow import slow_logps
from tiny import tiny_llama

VOCABULARY = 64
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9).map(tuple)
answers = st.lists(tokens, min_size=1, max_size=5).map(tuple)
choice_sets = st.lists(st.builds(ChoiceSet, tokens, answers), min_size=1, max_size=3)


def slow(model, sets):
    return pad_sequence([slow_logps(model, choices) for choices in sets], True, -torch.inf)


def assert_alike(logps_by_way, weights):
    """Gradients of both ways, of a model of its own each, in units of the largest."""
    grads = []
    for logps_of in logps_by_way:
        model = tiny_llama(VOCABULARY)
        (torch.tensor(weights) * logps_of(model)).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    scale = grads[1].abs().max()
    torch.testing.assert_close(grads[0] / scale, grads[1] / scale, rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(choice_sets, st.sampled_from(["packed", "separate"]))
def test_equals_the_slow_twin(sets, layout):
    model = tiny_llama(VOCABULARY)
    with torch.no_grad():
        got = choice_logps(model, pack(sets, pad_id=0, layout=layout))
        torch.testing.assert_close(got, slow(model, sets), rtol=0, atol=1e-4)


histories = st.lists(tokens, min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(histories, tokens, st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), min_size=5, max_size=5))
def test_prompts_that_share_a_row_equal_the_slow_twin(pieces, tail, answers):
    """Each prompt is the beginning of a text, with or without words of its own after it."""
    model = tiny_llama(VOCABULARY)
    begins = [sum(pieces[: i + 1], ()) for i in range(len(pieces))]
    prompts = [begin if i % 2 else (*begin, *tail) for i, begin in enumerate(begins)]
    sets = [ChoiceSet(prompt, own) for prompt, own in zip(prompts, answers, strict=False)]
    with torch.no_grad():
        got = choice_logps(model, *pack_passes(sets, pad_id=0, share=True))
        torch.testing.assert_close(got, slow(model, sets), rtol=0, atol=1e-4)


def test_gradients_of_a_shared_row_are_those_row_by_row():
    text = (1, 2, 3, 4, 5, 6, 7, 8)
    sets = [ChoiceSet(text[:n], ((n + 9, 9), (n + 20, n, 9))) for n in (3, 5, 8)]
    sets.append(ChoiceSet((*text[:6], 40, 41), ((11, 9), (12, 9))))
    (shared,), (apart,) = (pack_passes(sets, pad_id=0, share=share) for share in (True, False))
    assert (len(shared.input_ids), len(apart.input_ids)) == (1, 4)
    assert_alike([lambda model: choice_logps(model, shared), lambda model: choice_logps(model, apart)], [[1.0, -0.5]])


def test_the_mask_matters():
    """The scaled weights make a plain causal mask visibly wrong: the test above can fail."""
    model = tiny_llama(VOCABULARY)
    choices = ChoiceSet((1, 2, 3, 4), ((5, 6), (7, 8), (9, 10)))
    batch = pack([choices], pad_id=0)
    causal = torch.ones_like(batch.attention_mask).tril()
    with torch.no_grad():
        wrong = choice_logps(model, replace(batch, attention_mask=causal))
        assert (wrong[0] - slow_logps(model, choices)).abs().max() > 0.1


def test_gradients_equal_the_slow_twins():
    sets = [ChoiceSet((1, 2, 3), ((4, 9), (5, 6, 9), (7, 9))), ChoiceSet((8, 3), ((2, 9), (9,), (1, 1, 9)))]
    ways = [lambda model: choice_logps(model, pack(sets, pad_id=0)), lambda model: slow(model, sets)]
    assert_alike(ways, [[1.0, -0.5, 0.25], [0.3, -1.0, 2.0]])


SPREAD = [ChoiceSet((1, 2), ((3, 9), (4, 5, 6, 7, 9))), ChoiceSet((5, 6, 7), ((3, 9), (8, 9)))]


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_the_head_is_given_what_is_read_alone(layout):
    model, given_to_head = tiny_llama(VOCABULARY), []
    batch = pack(SPREAD, pad_id=0, layout=layout)
    read = set(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    model.lm_head.register_forward_hook(lambda m, args, out: given_to_head.append(tuple(out.shape)))
    want = slow(model, SPREAD)
    given_to_head.clear()
    got = choice_logps(model, batch)
    assert given_to_head == [(1, len(read), VOCABULARY)]
    assert len(read) < batch.input_ids.shape[0] * batch.logits_to_keep
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    got.sum().backward()
    choice_logps(model, batch)
    assert given_to_head[1:] == given_to_head[:1], "nothing is left of the first call"
    model(torch.tensor([[1, 2, 3]]))
    assert given_to_head[-1] == (1, 3, VOCABULARY)


def test_a_head_that_fails_leaves_nothing_behind():
    model = tiny_llama(VOCABULARY)
    hook = model.lm_head.register_forward_pre_hook(Mock(side_effect=RuntimeError("no head")))
    with pytest.raises(RuntimeError, match="no head"):
        choice_logps(model, pack(SPREAD, pad_id=0))
    hook.remove()
    assert not model.lm_head._forward_pre_hooks


@settings(deadline=None, max_examples=30)
@given(choice_sets, st.sampled_from(["packed", "separate"]), st.integers(1, 60))
def test_several_passes_score_as_one(sets, layout, budget):
    model = tiny_llama(VOCABULARY)
    with torch.no_grad():
        want = choice_logps(model, pack(sets, pad_id=0, layout=layout))
        got = choice_logps(model, *pack_passes(sets, pad_id=0, layout=layout, max_tokens=budget))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def _read_logits(dtype, *, obviously=False):
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 5, 50)).to(dtype).requires_grad_()
    # Out of order, one position for three tokens, one of them twice, some positions for none.
    rows, columns = torch.tensor([[2, 0, 0, 0, 1, 2, 0, 2], [4, 1, 1, 1, 0, 0, 3, 4]])
    targets = torch.tensor([7, 3, 9, 3, 0, 1, 49, 8])
    if obviously:
        got = torch.log_softmax(logits.float(), dim=-1)[rows, columns, targets]
    else:
        read, index = (5 * rows + columns).unique(return_inverse=True)
        got = token_logps(logits.flatten(0, 1), index, targets, read)
    got.backward(torch.linspace(-2, 3, len(rows)))
    return got.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [0, 2 * 4 * 50, 1 << 20])
def test_blocks_of_the_log_softmax_change_nothing(dtype, block, monkeypatch):
    """One position a block, two, all: the same as the log-softmax of everything in float32."""
    monkeypatch.setattr(scoring, "BLOCK_BYTES", block)
    (got, grad), (want, want_grad) = _read_logits(dtype), _read_logits(dtype, obviously=True)
    assert (got.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert want_grad.abs().max() > 1


def test_no_logits_are_kept_in_float32_but_a_block(monkeypatch):
    model, kept, blocks = tiny_llama(VOCABULARY).bfloat16(), [], []
    batch = pack([ChoiceSet(tuple(range(20)), ((1, 2, 3, 9), (4, 5, 9), (6, 9)))], pad_id=0)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 4 * VOCABULARY * 2)
    one_block = scoring._blocks

    def watched(logits, read, size):
        for block, start in one_block(logits, read, size):
            blocks.append(len(logits[block]))
            yield block, start

    monkeypatch.setattr(scoring, "_blocks", watched)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, t.shape)) or t, lambda t: t):
        answer_token_logps(model, batch).sum().backward()
    assert blocks == [2, 2, 2, 1] * 2
    assert (torch.bfloat16, (batch.logits_to_keep, VOCABULARY)) in kept
    assert not [shape for dtype, shape in kept if dtype == torch.float32 and shape[-1:] == (VOCABULARY,)]
