"""Preference losses of papers that no shipped recipe uses. Where prefrec-lab is installed, a recipe names them.

Shapes and errors are as for `prefrec.losses.preference_loss`, and docstrings use the same symbols. In a recipe,
scores [B, 1+N] are the user's ratings of the answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefrec.losses import PreferenceLoss, check_logps, having, preference_loss, required_reference


def ipo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, lengths: Tensor) -> PreferenceLoss:
    """Return the IPO loss mean_i (h_0 − h_i − 1 / 2β)² (Azar et al., AISTATS 2024, arXiv 2310.12036, eq. 17).

    h_i = log(π_i / π_ref,i) / n_i, where n are the `lengths` of answers in tokens, as in TRL. The paper has n = 1.
    """
    ref = required_reference(ref_logps)
    check_logps(policy_logps, ref, beta)
    ratios = policy_logps - ref
    per_token = ratios / lengths
    gaps = per_token[:, :1] - per_token[:, 1:] - 1 / (2 * beta)
    return PreferenceLoss(gaps.square().mean(dim=1), beta * ratios)


def robust_loss(
    policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, label_smoothing: float = 0.1
) -> PreferenceLoss:
    """Return the robust DPO loss for noisy labels (Chowdhury et al., ICML 2024, arXiv 2403.00409).

    It is mean_i ((1 − ε) softplus(r_i − r_0) − ε softplus(r_0 − r_i)) / (1 − 2ε), where ε = `label_smoothing` in
    [0, 0.5) is the probability that a rejected answer is actually the better one. ε = 0 gives DPO.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    ref = required_reference(ref_logps)
    check_logps(policy_logps, ref, beta)
    rewards = beta * (policy_logps - ref)
    gaps = rewards[:, 1:] - rewards[:, :1]
    losses = (1 - label_smoothing) * F.softplus(gaps) - label_smoothing * F.softplus(-gaps)
    return PreferenceLoss(losses.mean(dim=1) / (1 - 2 * label_smoothing), rewards)


def nca_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the NCA loss softplus(−r_0) + mean_j softplus(r_j) (Chen et al., NeurIPS 2024, arXiv 2402.05369).

    The mean is over all answers. This is the paper's loss for K = 1 + N answers if the chosen one has all the reward,
    and for N = 1 TRL's `nca_pair`.
    """
    ref = required_reference(ref_logps)
    check_logps(policy_logps, ref, beta)
    rewards = beta * (policy_logps - ref)
    return PreferenceLoss(F.softplus(-rewards[:, 0]) + F.softplus(rewards).mean(dim=1), rewards)


def simpo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor | None = None,
    beta: float = 2.0,
    *,
    lengths: Tensor,
    margin: float = 1.0,
    sft_weight: float = 0.0,
) -> PreferenceLoss:
    """Return the SimPO loss (Meng et al., NeurIPS 2024) with the SFT term of CPO (Xu et al., ICML 2024).

    It is log(1 + Σ_i exp(β log π_i / n_i − β log π_0 / n_0 + margin)) − sft_weight · log π_0, where n are the
    `lengths` of answers in tokens. For N = 1 these are the papers' losses.
    """
    margins = F.pad(torch.full_like(policy_logps[:, 1:], margin), (1, 0))
    out = preference_loss(policy_logps / lengths, None, beta, margin=margins)
    return PreferenceLoss(out.losses - sft_weight * policy_logps[:, 0], out.rewards)


@having(needs_logq=True)
def softmax_logq_loss(
    policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0, *, scores: Tensor
) -> PreferenceLoss:
    """Return the softmax loss of β log π_j − s_j, with logQ correction (Bengio and Senécal, 2008).

    Scores are log q up to a constant, where q is the probability of sampling an answer, also the chosen one, as a
    negative. For β = 1 the optimum is the distribution of the data, whatever q.
    """
    return preference_loss(policy_logps, None, beta, margin=-scores)


@having(needs_liked=True)
def mult_dpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, scores: Tensor) -> PreferenceLoss:
    """Return the Mult-DPO loss for graded answers (Zhu et al., 2026, arXiv 2606.10078).

    Answers with the same score, such as a rating, form a level. Each answer j above the lowest level is compared with
    its level and those below: Σ_j log Σ_{k: s_k ≤ s_j} exp(r_k − r_j). With two levels, this is the paper's
    multinomial likelihood of the upper level without the constant log k!. If that level has one answer, it is S-DPO.
    """
    size = policy_logps.shape[1]
    # One copy of the row per answer j, in which j and column 0 are swapped.
    order = torch.arange(size, device=policy_logps.device).repeat(size, 1)
    order[:, 0] = order[0].clone()
    order.fill_diagonal_(0)
    policy = policy_logps[:, order].flatten(0, 1)
    ref = required_reference(ref_logps)[:, order].flatten(0, 1)
    above = (scores[:, order] > scores[:, :, None]).flatten(0, 1)
    margin = torch.zeros_like(policy).masked_fill(above, -torch.inf)
    out = preference_loss(policy, ref, beta, margin=margin)
    is_counted = scores > scores.amin(dim=1, keepdim=True)
    return PreferenceLoss((out.losses.view(-1, size) * is_counted).sum(dim=1), out.rewards[::size])


def recpo_loss(
    policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, scores: Tensor, margin: float = 2.0
) -> PreferenceLoss:
    """Return the RecPO loss log(1 + Σ_i exp(r_i − r_0 + margin · s_0 / s_i)) (Ouyang et al., arXiv 2506.02261).

    Scores are positive utilities: ratings, or rating / √delay, where delay is the time until the interaction.
    """
    margins = F.pad(margin * scores[:, :1] / scores[:, 1:], (1, 0))
    return preference_loss(policy_logps, required_reference(ref_logps), beta, margin=margins)


def dynamicpo_loss(
    policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, margin: float = 6.0
) -> PreferenceLoss:
    """Return the DynamicPO loss: DMPO on hard negatives with one β each (Hu et al., 2026, arXiv 2605.00327).

    As in the authors' code, negatives with log π_i ≥ log π_0 are hard. If there are none, the hard ones are those in
    the highest of three clusters (here least-squares clusters). The loss is softplus(mean_i (r_i − r_0) β_i / β) over
    hard negatives, with β_i = β + β/2 tanh((a_i − b_i − margin) / (|a_i| + |b_i|)), which has no gradient. a_i is
    log π_0 − log π_i, and b_i is log π_i minus the mean log π of the negatives that are not hard, or of all if all
    are hard.
    """
    ref = required_reference(ref_logps)
    check_logps(policy_logps, ref, beta)
    logps = policy_logps.detach()
    rejected = logps[:, 1:]
    hard = rejected >= logps[:, :1]
    hard = torch.where(hard.any(dim=1, keepdim=True), hard, _top_cluster(rejected))
    others = hard.all(dim=1, keepdim=True) | ~hard
    a = logps[:, :1] - rejected
    b = rejected - _mean(rejected, others)[:, None]
    factors = 1 + torch.tanh((a - b - margin) / (a.abs() + b.abs()).clamp(min=1e-6)) / 2  # β_i / β
    rewards = beta * (policy_logps - ref)
    gaps = rewards[:, 1:] - rewards[:, :1]
    return PreferenceLoss(F.softplus(_mean(factors * gaps, hard)), rewards)


def expected_reward_loss(
    policy_logps: Tensor, ref_logps: Tensor | None, beta: float, *, scores: Tensor
) -> PreferenceLoss:
    """Return GRPO's objective (Shao et al., 2024, arXiv 2402.03300) in closed form: −Σ_j p_j A_j + β KL(p, p_ref).

    p is the softmax of log π over the choice set, and A_j = (s_j − mean s) / (std s + 1e-4) are the advantages. The
    optimum is p ∝ p_ref exp(A / β). The chosen answer counts by its score, like the others.
    """
    ref = required_reference(ref_logps)
    check_logps(policy_logps, ref, beta)
    log_p, log_ref = policy_logps.log_softmax(dim=1), ref.log_softmax(dim=1)
    advantages = (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + 1e-4)
    losses = (log_p.exp() * (beta * (log_p - log_ref) - advantages)).sum(dim=1)
    return PreferenceLoss(losses, beta * (policy_logps - ref))


def weighted_sft_loss(
    policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0, *, scores: Tensor
) -> PreferenceLoss:
    """Return the reward-weighted SFT loss −exp(s_0 / β) log π_0 (Chidambaram et al., 2026, arXiv 2603.10279)."""
    check_logps(policy_logps, None, beta)
    return PreferenceLoss(-torch.exp(scores[:, 0] / beta) * policy_logps[:, 0], policy_logps)


def _mean(values: Tensor, kept: Tensor) -> Tensor:
    """Return the mean [B] of the `kept` values [B, N]."""
    return values.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)


def _top_cluster(values: Tensor) -> Tensor:
    """Return a mask [B, N] of the highest of three least-squares clusters; for N < 3, of the highest value."""
    count, ranked = values.shape[1], values.sort(descending=True).values
    size = torch.ones_like(ranked[:, :1], dtype=torch.long)
    if count > 2:
        # Clusters are contiguous in the sorted values, cut after `a` and `b`. The least-squares cut maximises
        # Σ sum² / size.
        a, b = 1 + torch.triu_indices(count - 1, count - 1, 1, device=values.device)
        sums = (ranked - ranked.mean(dim=1, keepdim=True)).cumsum(dim=1)
        upper, both = sums[:, a - 1], sums[:, b - 1]
        fit = upper**2 / a + (both - upper) ** 2 / (b - a) + both**2 / (count - b)
        size = a[fit.argmax(dim=1, keepdim=True)]
    return values >= ranked.gather(1, size - 1)
