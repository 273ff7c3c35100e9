"""The losses of MoRec against loops over targets, and titles that are standardised."""

import math

import pytest
import torch

from prefrec_systems.morec.model import MoRecModel, distinct_codes, in_batch_softmax_loss
from prefrec_systems.sequential.batches import batches
from prefrec_systems.sequential.config import NextItemSection

N, WIDTH = 12, 6
SEQUENCES = [[1, 2, 3, 4, 2], [5, 6], [7, 1, 9, 8, 11, 3]]


@pytest.fixture
def model() -> MoRecModel:
    torch.manual_seed(0)
    return MoRecModel(NextItemSection(hidden_size=8, inner_size=16, dropout=0.0), WIDTH, 4)


def one_by_one(model, items, batch):
    """(row's items, target, state of the history alone) of each target."""
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
        length = int(mask.sum())
        own = {*inputs[:length].tolist(), *targets[:length].tolist()}
        for t in range(length):
            yield own, int(targets[t]), model.states(items[inputs[: t + 1]][None])[0, -1]


@torch.no_grad()
def test_in_batch_softmax_equals_the_slow_twin(model):
    vectors = torch.randn(N, WIDTH) * 3
    model.standardise_by(vectors)
    items, (batch,) = model.items(vectors), batches(SEQUENCES, 4, 99, (0,))
    shares = torch.rand(N)
    shares /= shares.sum()
    codes, there = distinct_codes(batch), sorted({i for s in SEQUENCES for i in s})
    assert codes.tolist() == there
    places = int(batch.mask.sum()) + len(batch.mask)
    losses = []
    for own, target, state in one_by_one(model, items, batch):
        rivals = [i for i in there if i == target or i not in own]
        scores = {i: math.exp(float(state @ items[i])) / (1 - (1 - float(shares[i])) ** places) for i in rivals}
        losses.append(-math.log(scores[target] / sum(scores.values())))
    loss = in_batch_softmax_loss(model, items[codes], codes, batch, shares)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@torch.no_grad()
def test_title_vectors_are_standardised(model):
    vectors = torch.randn(50, WIDTH) * torch.tensor([1.0, 1e3, 0.0, 5.0, 1.0, 1.0]) + 7
    model.standardise_by(vectors)
    scaled = (vectors - model.mean) / model.std
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(WIDTH), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(dim=0, correction=0)[[0, 1, 3]], torch.ones(3), rtol=0, atol=1e-3)
    assert torch.isfinite(model.items(vectors)).all()
