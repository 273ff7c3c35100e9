"""The method of the published scripts in plain code: 1 + N full sequences, logits at all positions, no sharing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from prefrec.prompts import ChoiceSet


def full_sequence_logps(model: nn.Module, choice_sets: Sequence[ChoiceSet], pad_id: int) -> Tensor:
    """Return log-probabilities of the answers [B, C]: one padded sequence per answer, float32 logits everywhere.

    Args:
        choice_sets: B prompts with C answers each.
    """
    sequences = [(c.prompt, answer) for c in choice_sets for answer in c.answers]
    length = max(len(prompt) + len(answer) for prompt, answer in sequences)
    device = next(model.parameters()).device
    ids = torch.full((len(sequences), length), pad_id)
    is_token, is_answer = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(sequences):
        start, end = len(prompt), len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        is_token[row, :end] = 1
        is_answer[row, start:end] = 1
    ids, is_token, is_answer = ids.to(device), is_token.to(device), is_answer.to(device)
    logits = model(input_ids=ids, attention_mask=is_token, use_cache=False).logits.float()
    log_probs = logits[:, :-1].log_softmax(dim=-1)
    of_tokens = log_probs.gather(2, ids[:, 1:, None]).squeeze(2)
    return (of_tokens * is_answer[:, 1:]).sum(dim=1).view(len(choice_sets), -1)


def published_loss(policy_logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """Return −log σ(−log Σ_{i≥1} exp(r_i − r_0)) of each row [B], with r = β (log π − log π_ref), [B, 1+N].

    This is the formula as printed in the paper (Chen et al., NeurIPS 2024, eq. 11). It overflows at large reward
    gaps.
    """
    rewards = beta * (policy_logps - ref_logps)
    gaps = rewards[:, 1:] - rewards[:, :1]
    return -F.logsigmoid(-gaps.exp().sum(dim=1).log())


def published_step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    choice_sets: Sequence[ChoiceSet],
    *,
    pad_id: int,
    beta: float,
    precision: torch.autocast,
    max_grad_norm: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Make one optimiser step on B rows; return the mean loss and the policy's log-probabilities [B, 1+N].

    The reference is the base without its adapter, so that one base is in memory (the scripts load two).

    Args:
        model: base with the adapter under training, in training mode.
        choice_sets: the rows, the chosen answer first.
    """
    with precision:
        policy = full_sequence_logps(model, choice_sets, pad_id)
    with torch.no_grad(), model.disable_adapter(), precision:
        reference = full_sequence_logps(model, choice_sets, pad_id)
    loss = published_loss(policy, reference, beta).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(trainable(model), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach(), policy.detach()


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    """Return the weights under training."""
    return [p for p in model.parameters() if p.requires_grad]
