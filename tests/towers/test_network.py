"""The title tower's loss against loops, and its gradient and steps against torch's automatic differentiation."""

import numpy as np
import pytest
from scipy.special import logsumexp

from drawn_towers import random_tower, slow_scores
from prefrec.towers import network
from prefrec.towers.network import AdamW, Dropped, TitleTower

ITEMS, WIDTH, LAST = 11, 5, 3
HISTORIES = np.array([[3, 0, 1], [2, -1, -1], [4, 4, -1], [-1, -1, -1], [10, 3, 7]])
TARGETS = np.array([5, 3, 3, 0, 10])


def titles() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((ITEMS, 8), np.float32)


def small_tower() -> TitleTower:
    tower = random_tower(titles(), WIDTH, LAST)
    for weight in tower.weights.values():
        weight *= 0.3  # so that no probability is so small that its gradient is only rounding
    return tower


def drawn(rng: np.random.Generator) -> Dropped:
    return Dropped.draw(rng, ITEMS, WIDTH, own=0.3, dropout=0.4)


def test_the_loss_equals_a_loop_over_items():
    tower, dropped = small_tower(), drawn(np.random.default_rng(0))
    want = []
    for history, target in zip(HISTORIES.tolist(), TARGETS, strict=True):
        scores = slow_scores(tower, [item for item in history if item >= 0], dropped.keep, dropped.read)
        assert logsumexp(scores) == pytest.approx(0, abs=1e-9)
        want.append(-scores[target])
    assert tower.loss(HISTORIES, TARGETS, dropped)[0] == pytest.approx(np.mean(want), rel=1e-5)


def test_a_gradient_step_goes_down_by_its_square():
    """The loss along the gradient falls by the step times the sum of squares."""
    tower, dropped, step = small_tower(), drawn(np.random.default_rng(3)), 2e-4
    before, gradients = tower.loss(HISTORIES, TARGETS, dropped)
    for name, gradient in gradients.items():
        moved = small_tower()
        moved.weights[name] -= step * gradient
        fell = before - moved.loss(HISTORIES, TARGETS, dropped)[0]
        assert fell == pytest.approx(step * (gradient.astype(np.float64) ** 2).sum(), rel=0.1, abs=2e-6), name


@pytest.mark.parametrize("cells", [network.CELLS, 2 * ITEMS])
def test_losses_and_weights_are_those_of_torch(monkeypatch, cells):
    """The same weights, batches and masks give the same steps, also when few scores are in memory at a time."""
    torch_tower = pytest.importorskip("torch_tower", exc_type=ImportError)
    monkeypatch.setattr(network, "CELLS", cells)
    tower, rng = small_tower(), np.random.default_rng(1)
    twin = torch_tower.TorchTower(tower, weight_decay=0.1)
    optimizer = AdamW(tower.weights, weight_decay=0.1)
    for step in range(12):
        dropped, rate = drawn(rng), 0.02 * (1 - step / 12)
        histories = rng.permutation(HISTORIES)
        loss, gradients = tower.loss(histories, TARGETS, dropped)
        optimizer.step(gradients, rate)
        assert loss == pytest.approx(twin.step(histories, TARGETS, dropped, rate), rel=1e-5)
    assert twin.arrays().keys() == tower.weights.keys()
    for name, weight in twin.arrays().items():
        np.testing.assert_allclose(tower.weights[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_dropped_has_its_share_and_keeps_the_mean():
    dropped = Dropped.draw(np.random.default_rng(0), 4000, 20, own=0.3, dropout=0.2)
    assert set(np.unique(dropped.keep)) == {0, 1}
    assert dropped.keep.mean() == pytest.approx(0.7, abs=0.03)
    assert sorted(np.unique(dropped.read)) == [0, 1.25]
    assert dropped.read.mean() == pytest.approx(1, abs=0.03)


def test_dropped_items_are_known_by_their_titles_alone():
    tower, read = small_tower(), np.ones((ITEMS, WIDTH), np.float32)
    loss, gradients = tower.loss(HISTORIES, TARGETS, Dropped(np.zeros(ITEMS, np.float32), read))
    assert not gradients["own"].any()
    assert not gradients["bias"].any()
    for name in ("own", "bias"):
        tower.weights[name][...] = 0
    assert tower.loss(HISTORIES, TARGETS, Dropped(np.ones(ITEMS, np.float32), read))[0] == pytest.approx(loss)
