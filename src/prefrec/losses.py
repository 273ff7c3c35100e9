"""Preference losses over choice sets: pure functions of log-probabilities that need only torch.

`preference_loss` is the general form; most other losses are special cases of it, named after a paper. All take
`policy_logps` and `ref_logps` of shape [B, 1+N]: the summed log-probabilities, in nats, of the chosen answer (column
0) and of N rejected answers (columns 1..N). They return a `PreferenceLoss` with the loss per example [B] and the
rewards [B, 1+N]; the caller takes the mean. Trainers call a loss separately for each N (`loss_by_size`).

A loss whose `ref_logps` has the default None is reference-free: it ignores them, and trainers do not compute them.
Some losses take a number per answer, `scores` or `lengths` [B, 1+N] (`COLUMNS`), or a setting (`OPTIONS`), by name.

In docstrings, π_i is π(y_i|x), s_i is a score, and r_i is the reward β log(π_i / π_ref,i). Σ_i and mean_i are over
rejected answers, Σ_j over all answers.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    # Functions import torch when they compute: recipes name losses, and are read without it.
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PreferenceLoss:
    """The result of a preference loss.

    Attributes:
        losses: loss per example, [B].
        rewards: β × (policy − reference) log-probabilities, [B, 1+N]; for reference-free losses
            β × policy log-probabilities.
    """

    losses: Tensor
    rewards: Tensor


AnyLoss = TypeVar("AnyLoss", bound=Callable[..., PreferenceLoss])


def preference_loss(
    policy_logps: Tensor,
    ref_logps: Tensor | None,
    beta: float,
    *,
    margin: Tensor | None = None,
    link: Literal["softmax", "pairwise", "mean"] = "softmax",
) -> PreferenceLoss:
    """Return a preference loss of the logits l_i = β (log π_i − log π_ref,i) + margin_i.

    All losses are finite for any difference of rewards.

    Args:
        policy_logps: [B, 1+N] log-probabilities under the policy; column 0 is the chosen answer.
        ref_logps: [B, 1+N] log-probabilities under the frozen reference. None: log π_ref = 0.
        beta: strength of the pull towards the reference, above 0.
        margin: [B, 1+N], added to the logits but not to the rewards; −inf excludes a rejected answer.
        link: `softmax`: log Σ_j exp(l_j − l_0), the cross-entropy of softmax(l) with label 0. `pairwise`:
            mean_i softplus(l_i − l_0). `mean`: softplus(mean_i l_i − l_0).

    Raises:
        ValueError: shapes differ, there is no rejected column, or beta is not positive.
    """
    import torch
    import torch.nn.functional as F

    check_logps(policy_logps, ref_logps, beta)
    ratios = policy_logps if ref_logps is None else policy_logps - ref_logps
    rewards = beta * ratios
    logits = rewards if margin is None else rewards + margin
    kept = None if margin is None else ~margin[:, 1:].isneginf()
    if link == "softmax":
        # logsumexp subtracts the largest difference first. The textbook form log(1 + Σ exp(x)) overflows near x = 89.
        losses = torch.logsumexp(logits - logits[:, :1], dim=1)
    elif link == "pairwise":
        # softplus(x) = −log σ(−x), but also finite where the sigmoid underflows to 0.
        losses = _mean(F.softplus(logits[:, 1:] - logits[:, :1]), kept)
    elif link == "mean":
        losses = F.softplus(_mean(logits[:, 1:], kept) - logits[:, 0])
        if kept is not None:  # no rejected answer, no loss, as with the other links
            losses = losses.masked_fill(~kept.any(dim=1), 0.0)
    else:
        raise ValueError(f"link {link!r} is unknown: expected softmax, pairwise or mean")
    return PreferenceLoss(losses, rewards)


def having(**traits: Any) -> Callable[[AnyLoss], AnyLoss]:
    """Return a decorator that sets traits of a loss (`trait`)."""

    def mark(loss: AnyLoss) -> AnyLoss:
        vars(loss).update(traits)
        return loss

    return mark


def trait(loss: Loss, name: str) -> Any:
    """Return a trait of a loss, None if it has none of this name.

    `arxiv`: number of its paper. `needs_logq`: its `scores` are log-probabilities of sampling each answer.
    `needs_liked`: the other liked items are among the answers of an example from the log.
    """
    return getattr(loss, name, None)


@having(arxiv="2406.09215")
def softmax_dpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the Softmax DPO loss log(1 + Σ_i exp(r_i − r_0)) (Chen et al., NeurIPS 2024, arXiv 2406.09215, eq. 11).

    Shapes and errors of this loss and those below are as for `preference_loss`.

    Args:
        policy_logps: [B, 1+N] log-probabilities under the policy, in nats; column 0 is the chosen answer.
        ref_logps: [B, 1+N] log-probabilities under the frozen reference.
        beta: strength of the pull towards the reference, above 0.
    """
    return preference_loss(policy_logps, required_reference(ref_logps), beta)


def dpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the DPO loss mean_i softplus(r_i − r_0) (Rafailov et al., NeurIPS 2023).

    For N = 1 this is −log σ(r_0 − r_1). For N > 1 the losses of the N pairs are averaged, as in a pairwise trainer.
    """
    return preference_loss(policy_logps, required_reference(ref_logps), beta, link="pairwise")


def dmpo_loss(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> PreferenceLoss:
    """Return the DMPO loss softplus(mean_i r_i − r_0) (Bai et al., 2024, arXiv 2405.16127)."""
    return preference_loss(policy_logps, required_reference(ref_logps), beta, link="mean")


def bpr_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the BPR loss mean_i softplus(β log π_i − β log π_0) (Rendle et al., UAI 2009)."""
    return preference_loss(policy_logps, None, beta, link="pairwise")


def softmax_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the sampled softmax loss (InfoNCE) log(1 + Σ_i exp(β log π_i − β log π_0)): reference-free S-DPO."""
    return preference_loss(policy_logps, None, beta)


def sft_loss(policy_logps: Tensor, ref_logps: Tensor | None = None, beta: float = 1.0) -> PreferenceLoss:
    """Return the SFT loss −log π_0, a control for alignment on the same examples; `beta` only scales the rewards.

    TRL's `sft` is a different loss: the mean over the tokens of all chosen answers of a batch.
    """
    check_logps(policy_logps, None, beta)
    return PreferenceLoss(-policy_logps[:, 0], beta * policy_logps)


Loss = Callable[..., PreferenceLoss]
"""Function (policy_logps, ref_logps, beta, further arguments by name) → loss.

If it needs a reference, it raises ValueError for `ref_logps` None.
"""
COLUMNS, OPTIONS = ("scores", "lengths"), ("margin",)
"""Further arguments of losses: numbers per answer [B, 1+N], and settings."""

LOSSES: dict[str, Loss] = {
    "softmax_dpo": softmax_dpo_loss,
    "dpo": dpo_loss,
    "dmpo": dmpo_loss,
    "bpr": bpr_loss,
    "softmax": softmax_loss,
    "sft": sft_loss,
}
"""Name (`loss` in a recipe, `loss_type` in `SoftmaxDPOConfig`) → loss."""

ALIASES = {"s-dpo": "softmax_dpo", "sigmoid": "dpo", "nca_pair": "nca"}
"""Name in the paper or in TRL → name of the same loss here."""

GROUP = "prefrec.losses"
"""Entry-point group for losses of other packages: NAME = "module:function"."""


def find_loss(loss: str | Loss) -> Loss:
    """Return the loss with this name, from `LOSSES` or from another package; a function is returned unchanged.

    Raises:
        ValueError: no loss has this name.
    """
    if callable(loss):
        return loss
    name = ALIASES.get(loss, loss)
    if name in LOSSES:
        return LOSSES[name]
    others = {e.name: e for e in entry_points(group=GROUP)}
    if name not in others:
        known = [*LOSSES, *others]
        near = difflib.get_close_matches(loss, [*known, *ALIASES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if not others:
            hint += "; others come with prefrec-lab: `pip install ./lab` in a clone"
        raise ValueError(f"loss {loss!r} is unknown: expected one of {', '.join(known)}{hint}")
    found: Loss = others[name].load()
    return found


def loss_name(loss: str | Loss | Sequence[str | Loss]) -> str:
    """Return the name of a loss, or the names of a list of losses joined by +, for logs and files."""
    if isinstance(loss, list | tuple):
        return "+".join(map(loss_name, loss))
    return loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__)


def takes(loss: Loss, name: str) -> bool:
    """Return True if a loss has an argument of this name."""
    return name in inspect.signature(loss).parameters


def with_options(loss: Loss, **options: float | None) -> Loss:
    """Bind settings of `OPTIONS` to a loss; None keeps its default. Raise ValueError if it has no such setting."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if not takes(loss, name):
            raise ValueError(f"loss {loss_name(loss)} has no {name}: remove this setting")
    return partial(loss, **given) if given else loss


def sum_of_losses(losses: Sequence[Loss], weights: Sequence[float], **options: float | None) -> Loss:
    """Return the loss Σ_k w_k L_k, with the rewards of the first loss.

    Args:
        losses: the losses L_k.
        weights: their weights w_k.
        **options: settings of `OPTIONS`, each passed to the losses that have it.

    Raises:
        ValueError: no loss has an option that is given.
    """
    import torch

    for name, value in options.items():
        if value is not None and not any(takes(loss, name) for loss in losses):
            raise ValueError(f"none of the losses has {name}: remove this setting")
    parts = [with_options(loss, **_taken(loss, options)) for loss in losses]
    columns = {name for name in COLUMNS if any(takes(part, name) for part in parts)}

    def total(policy_logps: Tensor, ref_logps: Tensor | None, beta: float, **given: Tensor) -> PreferenceLoss:
        outs = [part(policy_logps, ref_logps, beta, **_taken(part, given)) for part in parts]
        weighted = [weight * out.losses for weight, out in zip(weights, outs, strict=True)]
        return PreferenceLoss(torch.stack(weighted).sum(dim=0), outs[0].rewards)

    # A trainer reads from the signature whether a loss needs a reference, and which columns it takes.
    kind = inspect.Parameter
    ref_logps = kind("ref_logps", kind.POSITIONAL_OR_KEYWORD)
    if not any(map(needs_reference, parts)):
        ref_logps = ref_logps.replace(default=None)
    first = kind("policy_logps", kind.POSITIONAL_OR_KEYWORD), ref_logps
    total.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*first, *(kind(name, kind.KEYWORD_ONLY) for name in ("beta", *sorted(columns)))]
    )
    return total


def needs_reference(loss: Loss) -> bool:
    """Return False if a loss is reference-free: its second parameter, `ref_logps`, has the default None."""
    parameters = [*inspect.signature(loss).parameters.values()]
    if len(parameters) < 2:
        raise LossError(
            f"loss {loss_name(loss)} takes {len(parameters)} argument{'s' * (len(parameters) != 1)}; a loss takes "
            "(policy_logps, ref_logps, beta)"
        )
    return parameters[1].default is not None


def loss_by_size(
    loss: Loss, policy_logps: Tensor, ref_logps: Tensor | None, beta: float, sizes: Sequence[int], **columns: Tensor
) -> PreferenceLoss:
    """Return the loss of examples with different numbers of answers.

    Examples of the same size are passed to `loss` together, without padding: losses need not handle missing answers.

    Args:
        loss: the loss.
        policy_logps, ref_logps: [B, C], padded on the right.
        beta: strength of the pull towards the reference.
        sizes: number of answers of each example [B], at most C.
        **columns: [B, C] further arguments of the loss (`COLUMNS`).

    Returns:
        The losses [B] and rewards [B, C], −inf where an example has no answer.

    Raises:
        LossError: the loss returned something other than a `PreferenceLoss`.
    """
    import torch
    import torch.nn.functional as F

    if {*sizes} == {policy_logps.shape[1]}:
        return _checked_loss(loss, loss(policy_logps, ref_logps, beta, **columns), (len(sizes), sizes[0]))
    losses, rewards, order = [], [], []
    for size in sorted(set(sizes)):
        rows = [row for row, count in enumerate(sizes) if count == size]
        ref = None if ref_logps is None else ref_logps[rows, :size]
        part = loss(policy_logps[rows, :size], ref, beta, **{k: v[rows, :size] for k, v in columns.items()})
        part = _checked_loss(loss, part, (len(rows), size))
        losses.append(part.losses)
        rewards.append(F.pad(part.rewards, (0, policy_logps.shape[1] - size), value=-torch.inf))
        order += rows
    back = sorted(range(len(order)), key=order.__getitem__)
    return PreferenceLoss(torch.cat(losses)[back], torch.cat(rewards)[back])


class LossError(TypeError):
    """A loss takes or returns something else than the trainer expects; the message says what it expects."""


def _checked_loss(loss: Loss, out: PreferenceLoss, shape: tuple[int, int]) -> PreferenceLoss:
    """Return a loss's result; raise LossError unless it has a loss per example and a reward per answer, `shape`."""
    from torch import Tensor

    losses, rewards = getattr(out, "losses", None), getattr(out, "rewards", None)
    given = f"a {type(out).__name__}"
    if isinstance(losses, Tensor) and isinstance(rewards, Tensor):
        if tuple(losses.shape) == shape[:1] and tuple(rewards.shape) == shape:
            return out
        given = f"losses of shape {list(losses.shape)} and rewards of shape {list(rewards.shape)}"
    expected = f"losses of shape {[shape[0]]} and rewards of shape {list(shape)}"
    raise LossError(f"loss {loss_name(loss)} returned {given}; return prefrec.losses.PreferenceLoss, {expected}")


def effective_negatives(rewards: Tensor) -> Tensor:
    """Return the effective number of negatives in the S-DPO gradient, [B]: 1/Σ w_i² with w = softmax(r_1..r_N).

    It is N if all rejected answers have equal weight, and 1 if one of them carries the entire gradient (the paper's
    implicit hard-negative mining, section 3.2).

    Args:
        rewards: [B, 1+N], chosen answer in column 0.
    """
    weights = rewards[:, 1:].softmax(dim=1)
    return 1.0 / weights.square().sum(dim=1)


def required_reference(ref_logps: Tensor | None) -> Tensor:
    """Return the reference's log-probabilities; raise ValueError if they are None."""
    if ref_logps is None:
        raise ValueError("this loss needs ref_logps, the log-probabilities under the reference")
    return ref_logps


def check_logps(policy_logps: Tensor, ref_logps: Tensor | None, beta: float) -> None:
    """Raise ValueError if shapes are not [B, 1+N] with N ≥ 1, or differ, or if beta is not positive."""
    if policy_logps.dim() != 2 or policy_logps.shape[1] < 2:
        raise ValueError(
            f"expected [batch, 1 + negatives] with at least one negative, got {list(policy_logps.shape)}"
        )
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if ref_logps is not None and policy_logps.shape != ref_logps.shape:
        raise ValueError(
            f"policy_logps {list(policy_logps.shape)} and ref_logps {list(ref_logps.shape)} must have the same shape"
        )


def _taken(loss: Loss, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that a loss has."""
    return {name: value for name, value in arguments.items() if takes(loss, name)}


def _mean(values: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean [B] of the `kept` values [B, N], 0 if none is kept; None: of all values."""
    if kept is None:
        return values.mean(dim=1)
    return values.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
