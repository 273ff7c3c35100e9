"""prefrec.losses against published vectors, the formula of the paper and its algebra."""

import json
import math
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefrec import losses
from prefrec.losses import (
    LOSSES,
    PreferenceLoss,
    dmpo_loss,
    dpo_loss,
    effective_negatives,
    find_loss,
    loss_by_size,
    loss_name,
    needs_reference,
    softmax_dpo_loss,
)

SHARED = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
VECTORS = SHARED.parent / "vectors" / "sdpo_loss_cases.json"

logps = st.floats(-60.0, 0.0)


@st.composite
def choice_logps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    b, c = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    values = st.lists(logps, min_size=b * c, max_size=b * c)
    make = lambda: torch.tensor(draw(values), dtype=torch.float64).view(b, c)  # noqa: E731
    return make(), make()


def written_form(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """The slow twin: the loss as the paper writes it, term by term (overflows for large gaps)."""
    out = []
    for p, r in zip(policy, ref, strict=True):
        rewards = [beta * (a - b) for a, b in zip(p, r, strict=True)]
        inner = sum(torch.exp(x - rewards[0]) for x in rewards[1:])
        out.append(-torch.nn.functional.logsigmoid(-torch.log(inner)))
    return torch.stack(out)


@pytest.mark.skipif(
    not VECTORS.exists(),
    reason="needs vectors/ beside the folder that PREFREC_SHARED_DATA names (default: ../shared/data)",
)
def test_agrees_with_published_vectors():
    cases = json.loads(VECTORS.read_text())["cases"]
    assert cases
    for case in cases:
        policy = torch.tensor(case["policy_logps"], dtype=torch.float64, requires_grad=True)
        ref = torch.tensor(case["ref_logps"], dtype=torch.float64)
        out = softmax_dpo_loss(policy, ref, case["beta"])
        out.losses.mean().backward()
        torch.testing.assert_close(out.losses.tolist(), case["losses"], rtol=0, atol=1e-9)
        torch.testing.assert_close(out.rewards[:, 0].tolist(), case["chosen_rewards"], rtol=0, atol=1e-9)
        torch.testing.assert_close(out.rewards[:, 1:].tolist(), case["rejected_rewards"], rtol=0, atol=1e-9)
        assert policy.grad is not None
        torch.testing.assert_close(policy.grad.tolist(), case["grad_policy_logps"], rtol=0, atol=1e-9)


@settings(deadline=None)
@given(choice_logps(), st.floats(0.05, 3.0))
def test_equals_the_written_form(pair, beta):
    policy, ref = pair
    torch.testing.assert_close(softmax_dpo_loss(policy, ref, beta).losses, written_form(policy, ref, beta))


@settings(deadline=None)
@given(choice_logps(), st.floats(0.05, 3.0), st.randoms())
def test_order_of_negatives_does_not_matter(pair, beta, rnd):
    policy, ref = pair
    order = list(range(1, policy.shape[1]))
    rnd.shuffle(order)
    columns = [0, *order]
    for loss in LOSSES.values():
        torch.testing.assert_close(
            loss(policy, ref, beta).losses, loss(policy[:, columns], ref[:, columns], beta).losses
        )


@settings(deadline=None)
@given(choice_logps(), st.floats(0.05, 3.0))
def test_is_log_of_choices_at_the_reference(pair, beta):
    policy, _ = pair
    expected = torch.full((policy.shape[0],), math.log(policy.shape[1]), dtype=torch.float64)
    torch.testing.assert_close(softmax_dpo_loss(policy, policy, beta).losses, expected)


@settings(deadline=None)
@given(choice_logps(), st.floats(0.05, 3.0))
def test_one_negative_is_dpo_and_dmpo(pair, beta):
    policy, ref = (x[:, :2] for x in pair)
    softmax = softmax_dpo_loss(policy, ref, beta).losses
    torch.testing.assert_close(softmax, dpo_loss(policy, ref, beta).losses)
    torch.testing.assert_close(softmax, dmpo_loss(policy, ref, beta).losses)


@settings(deadline=None)
@given(choice_logps(), st.floats(0.05, 3.0))
def test_gradient_is_the_papers(pair, beta):
    policy, ref = pair
    policy = policy.clone().requires_grad_()
    out = softmax_dpo_loss(policy, ref, beta)
    out.losses.sum().backward()
    p = torch.softmax(out.rewards.detach(), dim=1)
    w = torch.softmax(out.rewards.detach()[:, 1:], dim=1)
    pull = torch.cat([torch.ones_like(w[:, :1]), -w], dim=1)
    torch.testing.assert_close(policy.grad, -beta * (1 - p[:, :1]) * pull, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gap", [-10_000.0, 10_000.0])
def test_finite_for_huge_gaps_in_float32(name, gap):
    policy = torch.tensor([[0.0, gap, gap / 2], [gap, 0.0, 0.0]], requires_grad=True)
    out = LOSSES[name](policy, torch.zeros(2, 3), 1.0)
    out.losses.mean().backward()
    assert torch.isfinite(out.losses).all()
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


def test_exploded_pairs_are_the_mean_of_dpo():
    policy, ref = torch.randn(3, 5), torch.randn(3, 5)
    pairs = [dpo_loss(policy[:, [0, i]], ref[:, [0, i]], 0.5).losses for i in range(1, 5)]
    torch.testing.assert_close(dpo_loss(policy, ref, 0.5).losses, torch.stack(pairs).mean(dim=0))


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_losses_without_a_reference_are_their_formulas(beta):
    policy = torch.randn(3, 5, dtype=torch.float64)
    gaps = [[beta * (float(row[i]) - float(row[0])) for i in range(1, 5)] for row in policy]
    bpr = [sum(math.log1p(math.exp(gap)) for gap in row) / 4 for row in gaps]
    softmax = [math.log1p(sum(math.exp(gap) for gap in row)) for row in gaps]
    sft = [-float(row[0]) for row in policy]
    for name, want in (("bpr", bpr), ("softmax", softmax), ("sft", sft)):
        out = LOSSES[name](policy, None, beta)
        torch.testing.assert_close(out.losses, torch.tensor(want, dtype=torch.float64))
        torch.testing.assert_close(out.rewards, beta * policy)


@pytest.mark.parametrize("name", ["bpr", "softmax", "sft"])
def test_beta_is_one_where_there_is_no_reference(name):
    policy = torch.randn(3, 5)
    torch.testing.assert_close(LOSSES[name](policy).losses, LOSSES[name](policy, None, 1.0).losses)
    torch.testing.assert_close(LOSSES[name](policy).rewards, policy)


def test_dmpo_compares_with_the_mean_of_the_rejected_answers():
    policy, ref = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    rewards = [[0.7 * float(p - r) for p, r in zip(*rows, strict=True)] for rows in zip(policy, ref, strict=True)]
    want = [math.log1p(math.exp(sum(row[1:]) / 4 - row[0])) for row in rewards]
    out = dmpo_loss(policy, ref, 0.7)
    torch.testing.assert_close(out.losses, torch.tensor(want, dtype=torch.float64))
    torch.testing.assert_close(out.rewards, torch.tensor(rewards, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_different_sizes_are_those_of_each_row_alone(name):
    """Absent answers are −inf, as `choice_logps` returns them."""
    sizes, loss = [3, 5, 2, 3], LOSSES[name]
    absent = torch.tensor([[column >= size for column in range(5)] for size in sizes])
    policy, ref = (torch.randn(4, 5, dtype=torch.float64).masked_fill(absent, -torch.inf) for _ in range(2))
    policy.requires_grad_()
    out = loss_by_size(loss, policy, ref, 0.7, sizes)
    (grad,) = torch.autograd.grad(out.losses.sum(), policy)
    for row, size in enumerate(sizes):
        alone = policy[row : row + 1, :size].detach().requires_grad_()
        want = loss(alone, ref[row : row + 1, :size], 0.7)
        (want_grad,) = torch.autograd.grad(want.losses.sum(), alone)
        torch.testing.assert_close(out.losses[row], want.losses[0])
        torch.testing.assert_close(out.rewards[row, :size], want.rewards[0])
        torch.testing.assert_close(grad[row, :size], want_grad[0])
    assert out.rewards[absent].isneginf().all()
    assert (grad[absent] == 0).all()


@pytest.mark.parametrize("name", ["bpr", "softmax", "sft"])
def test_reference_free_losses_ignore_the_reference(name):
    policy = torch.randn(3, 5)
    one, two = (LOSSES[name](policy, ref, 1.0).losses for ref in (None, torch.randn(3, 5)))
    torch.testing.assert_close(one, two)
    assert not needs_reference(LOSSES[name])


@pytest.mark.parametrize("name", ["softmax_dpo", "dpo", "dmpo"])
def test_other_losses_need_a_reference(name):
    assert needs_reference(LOSSES[name])
    with pytest.raises(ValueError, match="this loss needs ref_logps"):
        LOSSES[name](torch.randn(3, 5), None, 1.0)


def test_a_function_is_its_own_loss():
    assert find_loss(softmax_dpo_loss) is softmax_dpo_loss
    assert (loss_name(softmax_dpo_loss), loss_name("dpo")) == ("softmax_dpo_loss", "dpo")


class Summed:
    def __call__(self, policy: Tensor, ref: Tensor | None, beta: float) -> PreferenceLoss:
        return PreferenceLoss(policy.sum(1), policy)


def test_an_object_that_is_called_has_the_name_of_its_class():
    assert loss_name(Summed()) == "Summed"
    assert needs_reference(Summed())


def test_losses_of_other_packages_are_found_by_name(monkeypatch):
    def entries(group):
        return [EntryPoint("summed", f"{__name__}:Summed", group), EntryPoint("other", "nowhere:f", group)]

    monkeypatch.setattr(losses, "entry_points", entries)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: (entry.name, entry.group))
    assert find_loss("summed") == ("summed", "prefrec.losses")
    assert find_loss("dpo") is dpo_loss
    with pytest.raises(
        ValueError, match=r"'sum' is unknown: expected one of softmax_dpo, dpo, .*sft, summed, other$"
    ):
        find_loss("sum")


def test_rows_of_one_size_are_passed_on_as_they_are():
    policy, ref = torch.randn(3, 5), torch.randn(3, 5)
    out, want = loss_by_size(dpo_loss, policy, ref, 0.7, [5, 5, 5]), dpo_loss(policy, ref, 0.7)
    torch.testing.assert_close((out.losses, out.rewards), (want.losses, want.rewards))


def test_rows_of_different_sizes_need_no_reference_for_a_loss_without_one():
    policy = torch.tensor([[-1.0, -2.0, -torch.inf], [-1.0, -3.0, -2.0]])
    out = loss_by_size(LOSSES["bpr"], policy, None, 1.0, [2, 3])
    pairs = math.log1p(math.exp(-1)), math.log1p(math.exp(-2))
    torch.testing.assert_close(out.losses, torch.tensor([pairs[0], sum(pairs) / 2]))
    torch.testing.assert_close(out.rewards, policy)


def test_effective_negatives_counts_equal_and_single():
    rewards = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 50.0, 0.0, 0.0]])
    torch.testing.assert_close(effective_negatives(rewards), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize(
    ("policy", "ref", "beta", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 1.0, "one shape"),
        (torch.zeros(2, 1), torch.zeros(2, 1), 1.0, "at least one negative"),
        (torch.zeros(3), torch.zeros(3), 1.0, "at least one negative"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0.0, "beta must be positive"),
        (torch.zeros(2, 3), torch.zeros(2, 3), math.nan, "beta must be positive"),
    ],
)
def test_bad_arguments_are_named(policy, ref, beta, message):
    with pytest.raises(ValueError, match=message):
        softmax_dpo_loss(policy, ref, beta)
