"""Layers of SASRec, GRU4Rec and Caser: causal, the loss against a loop over targets, Caser against its formula."""

import math

import pytest
import torch

from prefrec_systems.sequential.batches import batches
from prefrec_systems.sequential.config import SEQUENTIAL_MODELS, SequentialConfig
from prefrec_systems.sequential.models import SequentialModel, full_softmax_loss, sampled_softmax_loss

N = 12
SEQUENCES = [[1, 2, 3, 4, 2], [5, 6], [7, 1, 9, 8, 11, 3]]


@pytest.fixture(params=SEQUENTIAL_MODELS)
def model(request) -> SequentialModel:
    torch.manual_seed(0)
    config = SequentialConfig(model=request.param, hidden_size=8, inner_size=16, window=3)
    made = SequentialModel(config, N, 5).eval()
    torch.nn.init.normal_(made.table.weight)
    return made


def state(model: SequentialModel, history: list[int]) -> torch.Tensor:
    return model.states(model.table(torch.tensor([history])))[0, -1]


@torch.no_grad()
def test_loss_equals_a_loop_over_targets(model):
    (batch,) = batches(SEQUENCES, 5, 99, (0,))
    losses = []
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
        for t in range(int(mask.sum())):
            scores = [math.exp(float(state(model, inputs[: t + 1].tolist()) @ v)) for v in model.all_items()]
            losses.append(-math.log(scores[int(targets[t])] / sum(scores)))
    assert len(losses) == sum(len(s) - 1 for s in SEQUENCES)
    assert float(model.loss(batch)) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("logq", [True, False])
@torch.no_grad()
def test_sampled_loss_equals_a_loop_over_targets_and_draws(model, logq):
    (batch,) = batches(SEQUENCES, 5, 99, (0,))
    model.negatives, model.logq = 7, logq
    torch.manual_seed(3)
    loss = model.loss(batch)
    torch.manual_seed(3)
    drawn = torch.randint(N, (len(batch.inputs), 7)).tolist()
    losses = []
    for row, inputs, targets, mask in zip(drawn, batch.inputs, batch.targets, batch.mask, strict=True):
        for t in range(int(mask.sum())):
            of = state(model, inputs[: t + 1].tolist())
            own = math.exp(float(of @ model.table.weight[targets[t]]))
            others = [math.exp(float(of @ model.table.weight[i])) for i in row if i != int(targets[t])]
            losses.append(-math.log(own / (own + sum(others) * (N / 7 if logq else 1))))
    assert any(int(t) in row for row, targets in zip(drawn, batch.targets, strict=True) for t in targets)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@torch.no_grad()
def test_sampled_loss_comes_to_the_full_one_with_many_draws(model):
    (batch,) = batches(SEQUENCES, 5, 99, (0,))
    items = model.table.weight
    many = sampled_softmax_loss(model, items, batch, 200_000)
    assert float(many) == pytest.approx(float(full_softmax_loss(model, items, batch)), abs=0.02)


@torch.no_grad()
def test_no_state_sees_a_later_item_and_each_sees_its_own(model):
    a, b = (model.states(model.table(torch.tensor([h])))[0] for h in ([1, 2, 3, 4], [1, 2, 9, 4]))
    torch.testing.assert_close(a[:2], b[:2], rtol=0, atol=1e-6)
    assert (a[2:] - b[2:]).abs().amax(dim=1).min() > 1e-3


@torch.no_grad()
def test_caser_equals_its_formula():
    config = SequentialConfig(model="Caser", hidden_size=4, n_heads=1, window=3)
    torch.manual_seed(0)
    model = SequentialModel(config, N, 5).eval()
    torch.nn.init.normal_(model.table.weight)
    layers, history = model.layers, [3, 7]
    image = torch.cat([torch.zeros(1, 4), model.table.weight[history]])  # one empty row before the two items
    seen = []
    for height, conv in enumerate(layers.wide, 1):
        places = [image[start : start + height].T for start in range(4 - height)]  # [d, height]
        filters = zip(conv.weight, conv.bias, strict=True)
        seen += [max(0.0, *(float((f * p).sum() + b) for p in places)) for f, b in filters]
    tall = [float(row @ image[:, d]) for d in range(4) for row in layers.tall.weight]
    want = layers.project(torch.tensor([*seen, *tall]))
    torch.testing.assert_close(state(model, history), want, rtol=0, atol=1e-5)
