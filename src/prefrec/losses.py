"""Preference losses over choice sets: pure functions of log-probabilities, torch only.

Every function takes `policy_logps` and `ref_logps` of shape [B, 1+N], the summed log-probabilities of the chosen
answer (column 0) and of N rejected answers (columns 1..N). Trainers pass rows of different N apart (`loss_by_size`).
A loss whose `ref_logps` has the default None is reference-free: it ignores them, and a trainer computes none. It
returns a `PreferenceLoss` with the loss per row [B] and the rewards [B, 1+N]. The caller takes the mean.

With rewards r_i = β (log π(y_i|x) − log π_ref(y_i|x)):

| function | loss of a row |
|---|---|
| `softmax_dpo_loss` | log(1 + Σ_i exp(r_i − r_0)) |
| `dpo_loss` | mean_i softplus(r_i − r_0): DPO for N = 1, exploded pairs for N > 1 |
| `dmpo_loss` | softplus(mean_i r_i − r_0) |
| `bpr_loss` | mean_i softplus(β (log π(y_i|x) − log π(y_0|x))): reference-free |
| `softmax_loss` | log(1 + Σ_i exp(β (log π(y_i|x) − log π(y_0|x)))): reference-free |
| `sft_loss` | −log π(y_0|x): reference-free |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """The result of a preference loss.

    Attributes:
        losses: loss per row, [B].
        rewards: β × (policy − reference) log-probabilities, [B, 1+N]; for reference-free losses
            β × policy log-probabilities.
    """

    losses: Tensor
    rewards: Tensor


def softmax_dpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the Softmax DPO loss (Chen et al., NeurIPS 2024, arXiv 2406.09215, eq. 11).

    −log σ(−log Σ_{i≥1} exp(r_i − r_0)) is the cross-entropy of softmax(r_0..r_N) with label 0. It is computed in that
    form, which is finite for any reward gap.

    Args:
        policy_logps: [B, 1+N], chosen answer in column 0.
        ref_logps: [B, 1+N], of the frozen reference.
        beta: strength of the pull to the reference, > 0.

    Raises:
        ValueError: shapes differ, there is no rejected column, or beta is not positive.
    """
    rewards = _rewards(policy_logps, ref_logps, beta)
    return PreferenceLoss(_softmax_cross_entropy(rewards), rewards)


def dpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the DPO loss (Rafailov et al., NeurIPS 2023): −log σ(r_0 − r_1).

    For N > 1 the losses of the N pairs are averaged, as a pairwise trainer would do. Arguments, shapes and errors are
    those of `softmax_dpo_loss`.
    """
    rewards = _rewards(policy_logps, ref_logps, beta)
    return PreferenceLoss(_mean_pairwise(rewards), rewards)


def dmpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the DMPO loss (Bai et al., 2024): −log σ(r_0 − mean_i r_i).

    Arguments, shapes and errors are those of `softmax_dpo_loss`.
    """
    rewards = _rewards(policy_logps, ref_logps, beta)
    return PreferenceLoss(F.softplus(rewards[:, 1:].mean(dim=1) - rewards[:, 0]), rewards)


def bpr_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the BPR loss (Rendle et al., UAI 2009) on β × log-probabilities, averaged over the N pairs."""
    _check(policy_logps, beta)
    rewards = beta * policy_logps
    return PreferenceLoss(_mean_pairwise(rewards), rewards)


def softmax_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the sampled softmax loss (InfoNCE) on β × log-probabilities: S-DPO without its reference."""
    _check(policy_logps, beta)
    rewards = beta * policy_logps
    return PreferenceLoss(_softmax_cross_entropy(rewards), rewards)


def sft_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the SFT loss −log π of the chosen answer, a control for an alignment on the same rows.

    `beta` only scales the rewards.
    """
    _check(policy_logps, beta)
    return PreferenceLoss(-policy_logps[:, 0], beta * policy_logps)


Loss = Callable[[Tensor, Tensor | None, float], PreferenceLoss]
"""(policy_logps, ref_logps, beta) → loss. One that needs a reference raises ValueError for None."""

LOSSES: dict[str, Loss] = {
    "softmax_dpo": softmax_dpo_loss,
    "dpo": dpo_loss,
    "dmpo": dmpo_loss,
    "bpr": bpr_loss,
    "softmax": softmax_loss,
    "sft": sft_loss,
}
"""Name (`loss` in a recipe, `loss_type` in `SoftmaxDPOConfig`) → loss."""

GROUP = "prefrec.losses"
"""Group of entry points by which other packages add losses: NAME = "module:function"."""


def find_loss(loss: str | Loss) -> Loss:
    """Return the loss of this name, from `LOSSES` or from another package; a function is returned as it is.

    Raises:
        ValueError: no loss has this name.
    """
    if callable(loss):
        return loss
    if loss in LOSSES:
        return LOSSES[loss]
    others = {e.name: e for e in entry_points(group=GROUP)}
    if loss not in others:
        raise ValueError(f"loss {loss!r} is unknown: expected one of {', '.join([*LOSSES, *others])}")
    return cast(Loss, others[loss].load())


def loss_name(loss: str | Loss) -> str:
    """Return the name of a loss, for logs and files."""
    return loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)


def needs_reference(loss: Loss) -> bool:
    """Return False if the second parameter of a loss, `ref_logps`, has the default None."""
    _, ref_logps, *_ = inspect.signature(loss).parameters.values()
    return ref_logps.default is not None


def loss_by_size(
    loss: Loss, policy_logps: Tensor, ref_logps: Tensor | None, beta: float, sizes: Sequence[int]
) -> PreferenceLoss:
    """Return a loss of rows with different numbers of answers; rewards are −inf where a row has no answer.

    Rows of the same size are passed to `loss` together, without the columns that they do not have, so no loss needs
    to know about absent answers. `sizes` [B] are the numbers of answers, at most C, the columns of the others.
    """
    if len(set(sizes)) == 1:
        return loss(policy_logps, ref_logps, beta)
    losses, rewards, order = [], [], []
    for size in sorted(set(sizes)):
        rows = [row for row, own in enumerate(sizes) if own == size]
        part = loss(policy_logps[rows, :size], None if ref_logps is None else ref_logps[rows, :size], beta)
        losses.append(part.losses)
        rewards.append(F.pad(part.rewards, (0, policy_logps.shape[1] - size), value=-torch.inf))
        order += rows
    back = torch.tensor(order, device=policy_logps.device).argsort()
    return PreferenceLoss(torch.cat(losses)[back], torch.cat(rewards)[back])


def effective_negatives(rewards: Tensor) -> Tensor:
    """Return the effective number of negatives in the S-DPO gradient, [B]: 1/Σ w_i² with w = softmax(r_1..r_N).

    It is N if all rejected answers have equal weight, and 1 if one of them carries the whole gradient (the paper's
    implicit hard-negative mining, section 3.2).
    """
    weights = torch.softmax(rewards[:, 1:], dim=1)
    return 1.0 / weights.square().sum(dim=1)


def _softmax_cross_entropy(rewards: Tensor) -> Tensor:
    # logsumexp subtracts the largest gap first. The textbook form log(1 + Σ exp(gap)) overflows at gaps near 89.
    return torch.logsumexp(rewards - rewards[:, :1], dim=1)


def _mean_pairwise(rewards: Tensor) -> Tensor:
    # softplus(x) = −log σ(−x), but finite where the sigmoid underflows to 0.
    return F.softplus(rewards[:, 1:] - rewards[:, :1]).mean(dim=1)


def _rewards(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> Tensor:
    _check(policy_logps, beta)
    if ref_logps is None:
        raise ValueError("this loss needs ref_logps, the log-probabilities of the reference")
    if policy_logps.shape != ref_logps.shape:
        raise ValueError(
            f"policy_logps {list(policy_logps.shape)} and ref_logps {list(ref_logps.shape)} must have one shape"
        )
    return beta * (policy_logps - ref_logps)


def _check(policy_logps: Tensor, beta: float) -> None:
    if policy_logps.dim() != 2 or policy_logps.shape[1] < 2:
        raise ValueError(
            f"expected [batch, 1 + negatives] with at least one negative, got {list(policy_logps.shape)}"
        )
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
