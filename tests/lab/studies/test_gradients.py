"""The S-DPO gradient by its formula against autograd, its weights against slow twins, and whole studies."""

import numpy as np
import polars as pl
import pytest
import torch

from prefrec.losses import softmax_dpo_loss
from prefrec_lab.studies.gradients import GRADIENTS, _shuffled, gradient_values, sdpo_gradient

STUDY = GRADIENTS


def _logps(batch=6, negatives=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(batch, 1 + negatives, dtype=torch.float64, generator=generator) * 3  # noqa: E731
    return draw(), draw()


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("negatives", [1, 4, 15])
def test_the_formula_is_the_gradient(beta, negatives):
    policy, reference = _logps(negatives=negatives)
    policy.requires_grad_()
    softmax_dpo_loss(policy, reference, beta).losses.sum().backward()
    torch.testing.assert_close(sdpo_gradient(policy.detach(), reference, beta), policy.grad, rtol=1e-9, atol=1e-12)


def test_quantities_of_a_row_one_by_one():
    policy, reference = _logps()
    hardness = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    found = gradient_values(policy, reference, 0.7, hardness)
    for b in range(len(policy)):
        r = [0.7 * float(p - q) for p, q in zip(policy[b], reference[b], strict=True)]
        e = [np.exp(x) for x in r]
        w = [x / sum(e[1:]) for x in e[1:]]
        judged = [w[i] for i in sorted(range(4), key=lambda i: -hardness[b, i])]
        wrong = 1 - e[0] / sum(e)
        assert (found["judged"][b], found["judged 3"][b]) == pytest.approx((judged[0], sum(judged[:3])))
        assert (found["largest"][b], found["effective"][b]) == pytest.approx((max(w), 1 / sum(x * x for x in w)))
        assert found["wrong"][b] == pytest.approx(wrong)
        assert found["norm"][b] == pytest.approx(0.7 * wrong * np.sqrt(1 + sum(x * x for x in w)))


def test_shuffling_keeps_the_spread_and_forgets_the_judge():
    """The judge is the policy itself: before shuffling its hardest negative has the largest weight of the row."""
    policy, reference = _logps(batch=4000)
    hardness = (policy - reference)[:, 1:]
    was = gradient_values(policy, reference, 0.7, hardness)
    now = gradient_values(_shuffled(policy, reference, 0), reference, 0.7, hardness)
    np.testing.assert_array_equal(was["judged"], was["largest"])
    for kept in ("largest", "effective", "wrong", "norm"):
        np.testing.assert_allclose(now[kept], was[kept])
    assert now["judged"].mean() == pytest.approx(1 / 4, abs=0.02)


def test_before_training_all_negatives_weigh_the_same(summary):
    table = pl.DataFrame(summary["tables"]["table"], infer_schema_length=None)

    def means(variant):
        return {r["quantity"]: r["mean"] for r in table.filter(variant=variant).iter_rows(named=True)}

    same = {"judged": 1 / 5, "judged 3": 3 / 5, "largest": 1 / 5, "effective": 5, "wrong": 5 / 6}
    assert means("sft") == pytest.approx(same | {"norm": 5 / 6 * np.sqrt(1 + 1 / 5)})
    trained, shuffled = means("s-dpo"), means("s-dpo, shuffled")
    assert trained["largest"] > 1 / 5 + 1e-4
    assert trained["effective"] < 5 - 1e-4
    assert summary["n"] == 20
    assert shuffled["largest"] == pytest.approx(trained["largest"])
    assert shuffled["judged"] != trained["judged"]
