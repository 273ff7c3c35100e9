"""Alignment of a head with frozen layers."""

import numpy as np
import pytest
import torch

from prefrec.lm.items import ItemTable, add_items, item_table, next_item_logps
from prefrec.losses import sft_loss, softmax_dpo_loss
from prefrec_lab.heads import Choices, Head, aligned, states
from prefrec_lab.losses import weighted_sft_loss
from tiny import small_llama


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = small_llama()
    table = add_items(model, [f"i{n}" for n in range(12)], torch.randn(12, 5))
    torch.nn.init.normal_(table.own, std=0.3)
    torch.nn.init.normal_(table.bias, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def table(model) -> ItemTable:
    return item_table(model)


def test_a_head_on_states_is_the_model(model, table):
    first = len(model.get_input_embeddings().words.weight)
    prompts = [[0, first + 3], [0, first + 1, first + 5, first + 2], [0, *range(first, first + 9)]]
    found = states(model, prompts, most=2)
    assert [len(own) for own in found] == [2, 4, 10]
    logps = Head(table).logps(torch.stack([own[-1] for own in found]))
    assert logps.numpy() == pytest.approx(next_item_logps(model, prompts).numpy(), abs=1e-5)
    # A state after k tokens does not know what follows.
    assert found[1][1].numpy() == pytest.approx(states(model, [prompts[1][:2]])[0][-1].numpy(), abs=1e-5)


def choices(rows: int = 20) -> Choices:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 32, generator=generator)
    answers = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(rows)])
    answers[::3, 2:] = -1
    return Choices(hidden, answers)


def width(table: ItemTable) -> int:
    return table.predict.weight.shape[1]


def own_choices(table: ItemTable) -> Choices:
    some = choices()
    return Choices(some.hidden[:, :1].repeat(1, width(table)) * torch.linspace(-1, 1, width(table)), some.answers)


def test_one_step_is_that_of_the_loss_over_all_items(table):
    some = own_choices(table)
    (head,) = aligned(table, some, softmax_dpo_loss, rate=1e-2, epochs=[1], batch=20, max_grad_norm=1e9)
    # Slow twin: the loss of each example alone, and one step of Adam, which at first moves by the sign.
    twin, reference = Head(table), Head(table)
    losses = []
    for hidden, answers in zip(some.hidden, some.answers, strict=True):
        kept = answers[answers >= 0]
        policy, ref = (h(hidden).log_softmax(dim=0)[kept] for h in (twin, reference))
        rewards = policy - ref.detach()
        losses.append(torch.log(1 + torch.exp(rewards[1:] - rewards[0]).sum()))
    torch.stack(losses).mean().backward()
    for before, after in zip(twin.parameters(), head.parameters(), strict=True):
        moved = before.grad.abs() > 1e-4
        assert moved.any()
        step = (after - before).detach()[moved]
        assert step.numpy() == pytest.approx(-1e-2 * before.grad[moved].sign().numpy(), rel=1e-3)


def test_alignment_prefers_the_chosen_answers_and_leaves_the_start(table):
    some = own_choices(table)
    before = table.own.detach().clone()
    heads = [*aligned(table, some, softmax_dpo_loss, rate=1e-2, epochs=[1, 30], batch=8)]
    assert torch.equal(table.own, before)
    places = torch.where(some.answers >= 0, some.answers, some.answers[:, :1])
    margins = []
    for head in (Head(table), *heads):
        logps = head.logps(some.hidden).gather(1, places)
        margins.append(float((logps[:, :1] - logps).mean()))
    assert margins[0] < margins[1] < margins[2], "a yielded head must not change when training goes on"


def test_weights_of_examples_count(table):
    some = own_choices(table)
    scores = torch.zeros(some.answers.shape)
    scores[10:] = -100.0
    weighted = Choices(some.hidden, some.answers, scores)
    half = Choices(some.hidden[:10], some.answers[:10])
    settings = {"rate": 1e-2, "epochs": [1], "max_grad_norm": 1e9}
    (first,) = aligned(table, weighted, weighted_sft_loss, batch=20, **settings)
    (second,) = aligned(table, half, sft_loss, batch=10, **settings)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert np.allclose(a.detach(), b.detach(), atol=2e-4)
