"""The softmax over all items in blocks: its loss and gradients against a loop over targets and against autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from prefrec_systems.sequential import softmax
from prefrec_systems.sequential.softmax import softmax_loss

TARGETS = torch.tensor([3, 0, 3, 6, 1])


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)


@pytest.fixture(params=[2, 5])
def few_at_a_time(request, monkeypatch) -> None:
    """Blocks of two targets, the last one of one, or all five at once."""
    monkeypatch.setattr(softmax, "CELLS_AT_A_TIME", 7 * request.param)


@pytest.mark.usefixtures("few_at_a_time")
def test_loss_equals_a_loop_over_targets(vectors):
    states, items = vectors
    losses = []
    for state, target in zip(states.tolist(), TARGETS.tolist(), strict=True):
        scores = [math.exp(sum(a * b for a, b in zip(state, item, strict=True))) for item in items.tolist()]
        losses.append(-math.log(scores[target] / sum(scores)))
    assert softmax_loss(states, items, TARGETS).item() == pytest.approx(sum(losses) / 5, abs=1e-5)


@pytest.mark.parametrize("library", ["torch", "onednn"])
@pytest.mark.usefixtures("few_at_a_time")
def test_gradients_equal_those_of_the_whole_matrix(vectors, monkeypatch, library):
    monkeypatch.setenv("PREFREC_LINEAR", library)
    got = torch.autograd.grad(3 * softmax_loss(*vectors, TARGETS), vectors)
    want = torch.autograd.grad(3 * F.cross_entropy(vectors[0] @ vectors[1].T, TARGETS), vectors)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
