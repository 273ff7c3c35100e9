"""Choice sets over several passes: the gradient, the log and the weights of one pass."""

from copy import deepcopy

import pytest
import torch
from peft import get_peft_model

from loss_cases import ALL_LOSSES
from prefrec.lm.scoring import choice_logps
from prefrec.losses import LOSSES
from prefrec.training import lora_config
from prefrec.training.base import split_inputs
from tiny_training import draw_adapters, losses, many_negatives, small_model, trainable


def _step(trainer):
    """Loss and gradients of one micro-batch of all rows, and the tokens of each pass that had a gradient."""
    tokens = []
    hook = trainer.model.get_base_model().register_forward_pre_hook(
        lambda m, args, kwargs: tokens.append(kwargs["input_ids"].numel()) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    batch = trainer.collate([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.training_step(trainer.model, batch, torch.tensor(7))
    hook.remove()
    return loss, {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}, tokens


def _assert_same(got, want):
    """Gradients that agree to 1e-4 of the largest, about 1,000 steps of float32: sums over all tokens and passes."""
    scale = max(g.abs().max() for g in want.values())
    assert scale > 1e-4
    for name, grad in want.items():
        torch.testing.assert_close(got[name] / scale, grad / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "layout"), [*((loss, "packed") for loss in ALL_LOSSES), ("softmax_dpo", "separate")]
)
def test_gradients_of_31_negatives_are_those_of_one_pass(sdpo, loss, layout):
    settings = {"loss_type": ALL_LOSSES[loss], "layout": layout, "precompute_ref_log_probs": False, "beta": 0.1}
    rows = [row | {"scores": [i % 5 + 1.0 for i in range(32)]} for row in many_negatives(31, 2)]
    want_loss, want, all_tokens = _step(sdpo(rows=rows, **settings))
    assert len(all_tokens) == 1
    got_loss, got, tokens = _step(sdpo(rows=rows, **settings, max_tokens_per_pass=80))
    assert len(tokens) > 4
    assert max(tokens) <= 80
    torch.testing.assert_close(got_loss, want_loss, rtol=0, atol=1e-5)
    _assert_same(got, want)


def test_a_pass_that_is_made_twice_counts_once(sdpo):
    """With sharded weights a process repeats its first pass while others still have passes to make."""
    run = sdpo(rows=many_negatives(15, 2), max_tokens_per_pass=80, precompute_ref_log_probs=False)
    want_loss, want, _ = _step(run)
    want = {name: grad.clone() for name, grad in want.items()}
    run.model.zero_grad()
    run._in_step = lambda passes: [passes[0], passes[0], *passes]
    got_loss, got, _ = _step(run)
    torch.testing.assert_close(got_loss, want_loss, rtol=0, atol=1e-6)
    _assert_same(got, want)


def test_dropout_is_the_same_in_both_phases(sdpo):
    """The slow twin keeps the graphs of all passes: one phase, the same random numbers."""
    changes = {"disable_dropout": False, "max_tokens_per_pass": 40, "loss_type": "softmax"}
    model = get_peft_model(small_model(), lora_config(4, dropout=0.3))
    draw_adapters(model, 0.05)
    runs = [sdpo(of, rows=many_negatives(8, 2), **changes) for of in (deepcopy(model), model)]
    batch = runs[0].collate([runs[0].train_dataset[i] for i in range(2)])
    torch.manual_seed(6)
    loss = runs[0].training_step(runs[0].model, batch, torch.tensor(2))
    after = torch.rand(1)
    passes, _ = split_inputs(batch)
    assert len(passes) > 3
    torch.manual_seed(6)
    logps = choice_logps(runs[1].model.train(), *passes)
    want = LOSSES["softmax"](logps, torch.zeros_like(logps), 1.0).losses.sum() / 2
    want.backward()
    assert torch.rand(1) == after
    torch.testing.assert_close(loss, want.detach(), rtol=0, atol=1e-5)
    for (name, p), (_, q) in zip(*(r.model.named_parameters() for r in runs), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-5, msg=name)


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "precompute_ref_log_probs": False}])
def test_training_in_passes_ends_with_the_same_weights(sdpo, tmp_path, changes):
    """With accumulation, unequal numbers of passes, and the reference under the same budget."""
    rows = many_negatives(15, 8)
    changes = changes | {"global_batch_size": 4, "per_device_train_batch_size": 2, "max_steps": 4}
    changes |= {"rows": rows, "evaluate": rows[:3], "eval_strategy": "steps", "eval_steps": 2}
    one = sdpo(**changes, train=True)
    for stored in tmp_path.glob("reference-*.safetensors"):
        stored.unlink()
    parts = sdpo(max_tokens_per_pass=80, **changes, train=True)
    assert losses(parts) == pytest.approx(losses(one), abs=1e-5)
    torch.testing.assert_close(trainable(parts.model), trainable(one.model), rtol=0, atol=2e-5)
    for log, want in zip(parts.state.log_history, one.state.log_history, strict=True):
        for name in ("rewards/margins", "logps/rejected", "eval_loss", "eval_rewards/chosen"):
            assert log.get(name) == pytest.approx(want.get(name), abs=1e-4)


def test_bfloat16_autocast_learns_in_passes(sdpo):
    """An autocast that kept casts of the adapter from the first phase would leave the loss where it starts."""
    runs = [sdpo(max_tokens_per_pass=of, bf16=True, max_steps=10, learning_rate=2e-2) for of in (None, 30)]
    for run in runs:
        run.train()
    one, parts = map(losses, runs)
    assert parts == pytest.approx(one, abs=0.1)
    assert max(abs(loss - parts[0]) for loss in parts) > 0.2
