"""prefrec.lm.scoring: packed scores and gradients against one full sequence an answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import LlamaForCausalLM

from prefrec.lm import scoring
from prefrec.lm.packing import pack, pack_passes
from prefrec.lm.scoring import (
    CHECKED_ANSWERS,
    PIECE,
    RECHECKED_ANSWERS,
    answer_token_logps,
    choice_logps,
    language_model,
    layout_for,
    probe_set,
    token_logps,
    verified_layout,
)
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from slow import slow_logps
from tiny import broken, tiny_llama

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

    config = Config()
    for name, value in changes.items():
        setattr(config, name, value)
    got, why = layout_for(config)
    assert got == layout
    assert reason in why


LONG = ChoiceSet(tuple(range(1, 25)), ((30, 31, 9), (32, 33, 9), (34, 9)))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ignores the mask", "other scores"),
        ("ignores positions", "other scores"),
        ("refuses the mask", "refuses the packed layout: ValueError: a mask of"),
    ],
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
            assert "gives other scores in a packed row" in why


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


def test_a_doubtful_mean_over_few_answers_is_asked_again_over_more(monkeypatch):
    gaps = {CHECKED_ANSWERS: 0.09, RECHECKED_ANSWERS: 0.02}
    monkeypatch.setattr(scoring, "_gap", lambda model, choices, pad, answers: gaps[answers])
    model = tiny_llama(VOCABULARY).to(torch.bfloat16)
    assert verified_layout(model, LONG, 0, "packed")[0] == "packed"
    gaps[RECHECKED_ANSWERS] = 0.08
    assert verified_layout(model, LONG, 0, "packed")[0] == "separate"


def test_a_model_that_gives_no_numbers_is_not_trusted():
    model = tiny_llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    assert verified_layout(model, LONG, 0, "packed")[0] == "separate"


def test_the_check_follows_autocast():
    """Adapters in float32 on a base in bfloat16 compute in autocast's type."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert verified_layout(tiny_llama(VOCABULARY), LONG, 0, "packed")[0] == "packed"


def test_the_check_is_a_few_small_passes_without_traces():
    model, rows = tiny_llama(VOCABULARY).train(), []
    model.register_forward_pre_hook(lambda m, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    many = ChoiceSet(LONG.prompt, LONG.answers * 20)
    assert verified_layout(model, many, 0, "packed")[0] == "packed"
    assert rows == [2, CHECKED_ANSWERS, CHECKED_ANSWERS]
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_nothing_is_tried_where_rows_are_separate():
    assert verified_layout(broken(tiny_llama(), "refuses the mask"), LONG, 0, "separate")[0] == "separate"


def test_the_language_model_inside_an_adapter_and_wrappers():
    model = tiny_llama(VOCABULARY)
    adapted = get_peft_model(model, lora_config())
    assert language_model(model) is model
    assert language_model(adapted) is model
    assert language_model(torch.nn.DataParallel(adapted)) is model


def test_separate_rows_send_only_the_answers_columns_through_the_head():
    """A short and a long prompt: the columns between their answers need no logits."""
    model, kept = tiny_llama(VOCABULARY), []
    model.lm_head.register_forward_pre_hook(lambda m, args: kept.append(args[0].shape[1]))
    sets = [ChoiceSet((1, 2), ((3, 9), (4, 5, 9))), ChoiceSet(tuple(range(40)), ((3, 9),))]
    with torch.no_grad():
        choice_logps(model, pack(sets, pad_id=0, layout="separate"))
    assert kept == [3 + 2]


SPREAD = [ChoiceSet((1, 2), ((3, 9), (4, 5, 6, 7, 9))), ChoiceSet((5, 6, 7), ((3, 9), (8, 9)))]


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_the_head_is_given_what_is_read_alone(layout):
    model, given_to_head = tiny_llama(VOCABULARY), []
    batch = pack(SPREAD, pad_id=0, layout=layout)
    read = set(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    model.lm_head.register_forward_hook(lambda m, args, out: given_to_head.append(tuple(out.shape)))
    want = torch.cat([slow_logps(model, choices) for choices in SPREAD])
    given_to_head.clear()
    got = choice_logps(model, batch)
    assert given_to_head == [(1, len(read), VOCABULARY)]
    assert len(read) < batch.input_ids.shape[0] * batch.logits_to_keep
    torch.testing.assert_close(got.flatten(), want, rtol=0, atol=1e-4)
    got.sum().backward()
    choice_logps(model, batch)
    assert given_to_head[1:] == given_to_head[:1], "nothing is left of the first call"
    model(torch.tensor([[1, 2, 3]]))
    assert given_to_head[-1] == (1, 3, VOCABULARY)


@pytest.mark.parametrize("why", ["not known", "compiled", "compiled inside"])
def test_the_head_is_given_all_columns_where_it_may_be_called_otherwise(why, monkeypatch):
    model = tiny_llama(VOCABULARY)
    batch = pack(SPREAD, pad_id=0)
    shapes = []
    model.lm_head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    if why == "not known":
        monkeypatch.setattr(scoring, "BRANCHING", frozenset())
    elif why == "compiled":
        model = torch.compile(model, backend="eager")
    else:
        model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        choice_logps(model, batch)
    assert shapes == [(2, batch.logits_to_keep, VOCABULARY)]


def test_a_head_that_fails_leaves_nothing_behind():
    model = tiny_llama(VOCABULARY)

    def fail(*_):
        raise RuntimeError("no head")

    hook = model.lm_head.register_forward_pre_hook(fail)
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


def _read_logits(dtype, block_bytes):
    """Log-probabilities of tokens read from made-up logits, and their gradient; None: the obvious way."""
    torch.manual_seed(0)
    logits = (5 * torch.randn(3, 5, 50)).to(dtype).requires_grad_()
    # Out of order, one position for three tokens, one of them twice, some positions for none.
    rows, columns, targets = torch.tensor(
        [[2, 0, 0, 0, 1, 2, 0, 2], [4, 1, 1, 1, 0, 0, 3, 4], [7, 3, 9, 3, 0, 1, 49, 8]]
    )
    if block_bytes is None:
        got = torch.log_softmax(logits.float(), dim=-1)[rows, columns, targets]
    else:
        got = token_logps(logits, rows, columns, targets, block_bytes=block_bytes)
    got.backward(torch.linspace(-2, 3, len(rows)))
    return got.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [0, 2 * 4 * 50, 1 << 20])
def test_blocks_of_the_log_softmax_change_nothing(dtype, block):
    """One position a block, two, all: the same as the log-softmax of everything in float32."""
    (got, grad), (want, want_grad) = _read_logits(dtype, block), _read_logits(dtype, None)
    assert got.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(grad, want_grad, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert want_grad.abs().max() > 1


def test_no_logits_are_kept_in_float32_but_a_block(monkeypatch):
    model, kept, blocks = tiny_llama(VOCABULARY).bfloat16(), [], []
    batch = pack([ChoiceSet(tuple(range(20)), ((1, 2, 3, 9), (4, 5, 9), (6, 9)))], pad_id=0)
    one_block = scoring._blocks
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 4 * VOCABULARY * 2)

    def watched(positions, size, count):
        for block, tokens, places in one_block(positions, size, count):
            blocks.append(len(positions.unique()[block]))
            yield block, tokens, places

    monkeypatch.setattr(scoring, "_blocks", watched)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t.dtype, t.shape)) or t, lambda t: t):
        answer_token_logps(model, batch).sum().backward()
    assert blocks == [2, 2, 2, 1] * 2
    assert (torch.bfloat16, (batch.logits_to_keep, VOCABULARY)) in kept
    assert not [shape for dtype, shape in kept if dtype == torch.float32 and shape[-1:] == (VOCABULARY,)]
