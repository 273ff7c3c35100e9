"""The exact gradient of a loss over all answers of a choice set, with only some of them in memory at a time.

A loss depends on the answers of a choice set only through their log-probabilities [B, C]. These are computed first,
without gradient, pass by pass. The loss then gives its slope by each log-probability, and every pass is made again
with the gradient of Σ slope × log-probability. By the chain rule the sum over the passes is the gradient of the loss,
at the cost of one more forward pass (gradient caching, Gao et al., 2021, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prefrec.lm.packing import PackedBatch
from prefrec.lm.scorer import ChoiceScorer


def logps_no_grad(scorer: ChoiceScorer, model: nn.Module, passes: Sequence[PackedBatch]) -> Tensor:
    """Return the log-probabilities [B, C] as a leaf that requires a gradient."""
    # Forked random numbers: dropout must be the same when the passes are made again.
    device = passes[0].input_ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        logps = scorer.choice_logps(passes, model)
    return logps.requires_grad_()


def chain_rule_term(
    scorer: ChoiceScorer, model: nn.Module, batch: PackedBatch, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Σ slope × log-probability over the answers of one pass, and the slope [B, C] of the others."""
    logps = scorer.choice_logps([batch], model)
    # The fill must come before the product: −inf × 0 would be NaN.
    part = (logps.masked_fill(~batch.choice_mask, 0.0) * slope).sum()
    return part, slope.masked_fill(batch.choice_mask, 0.0)
