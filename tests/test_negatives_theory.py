"""What S-DPO converges to: π* ∝ π_ref · (p/q)^(1/β) for negatives drawn from q, on a table of items."""

import numpy as np
import pytest
import torch
from torch import Tensor

from prefrec.losses import softmax_dpo_loss, softmax_loss
from prefrec_lab.losses import softmax_logq_loss

ITEMS, NEGATIVES, BATCH, STEPS = 30, 7, 2048, 400


def tables() -> tuple[Tensor, Tensor]:
    """The data p, and a reference that has learnt it with noise of σ = 1 in its logits."""
    rng = np.random.default_rng(0)
    p = torch.softmax(torch.tensor(rng.normal(size=ITEMS)), 0)
    return p, torch.softmax(p.log() + torch.tensor(rng.normal(size=ITEMS)), 0)


def converged(loss, p: Tensor, ref: Tensor, q: Tensor, beta: float) -> Tensor:
    """The policy of free logits after training with negatives from q, averaged over the last steps."""
    generator, logits = torch.Generator().manual_seed(0), ref.log().clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        chosen = torch.multinomial(p, BATCH, replacement=True, generator=generator)
        rejected = torch.multinomial(q, BATCH * NEGATIVES, replacement=True, generator=generator)
        columns = torch.cat([chosen[:, None], rejected.view(BATCH, NEGATIVES)], dim=1)
        policy = torch.log_softmax(logits, 0)
        optimiser.zero_grad()
        loss(policy[columns], ref.log()[columns], beta).losses.mean().backward()
        optimiser.step()
        schedule.step()
    return torch.softmax(logits.detach(), 0)


def kl(a: Tensor, b: Tensor) -> float:
    return float((a * (a.log() - b.log())).sum())


@pytest.mark.parametrize(("negatives", "beta"), [("uniform", 3.0), ("reference", 3.0), ("data", 1.0)])
def test_the_optimum_is_the_formulas(negatives: str, beta: float) -> None:
    p, ref = tables()
    q = {"uniform": torch.full_like(p, 1 / ITEMS), "reference": ref, "data": p}[negatives]
    predicted = ref * (p / q) ** (1 / beta)
    predicted /= predicted.sum()
    assert kl(predicted, converged(softmax_dpo_loss, p, ref, q, beta)) < 2e-3


def test_negatives_from_the_reference_give_the_data_back() -> None:
    """Uniform ones count twice what the reference knows."""
    p, ref = tables()
    uniform = torch.full_like(p, 1 / ITEMS)
    assert kl(p, ref) > 0.3
    assert kl(p, converged(softmax_dpo_loss, p, ref, ref, 1.0)) < 2e-3
    assert kl(p, converged(softmax_dpo_loss, p, ref, uniform, 1.0)) > 0.3
    assert kl(p, converged(softmax_loss, p, ref, uniform, 1.0)) < 2e-3


def test_the_reward_with_negatives_of_another_ranker_is_what_that_ranker_does_not_know() -> None:
    """At β = 1 it converges to log p − log q, up to a constant, whatever the reference is."""
    p, ref = tables()
    q = torch.softmax(p.log() + torch.tensor(np.random.default_rng(1).normal(size=ITEMS)), 0)
    reward = converged(softmax_dpo_loss, p, ref, q, 1.0).log() - ref.log()
    known = torch.softmax(q.log() + reward, 0)
    assert kl(p, q) > 0.3
    assert kl(p, known) < 5e-3


def test_the_softmax_corrected_by_log_q_gives_the_data_back_for_any_sampler() -> None:
    p, q = tables()
    assert kl(p, q) > 0.3
    corrected = converged(lambda policy, log_q, beta: softmax_logq_loss(policy, scores=log_q), p, q, q, 1.0)
    assert kl(p, corrected) < 2e-3
    assert kl(p, converged(softmax_loss, p, q, q, 1.0)) > 0.3
