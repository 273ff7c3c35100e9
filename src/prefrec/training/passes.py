"""The exact gradient of a loss over all answers of a choice set, with only some of them in memory at a time.

A loss depends on the answers only through their log-probabilities [B, C]. These are first computed without gradient,
pass by pass. The derivative of the loss by each log-probability (its slope) follows, and every pass is repeated with
the gradient of Σ slope × log-probability. By the chain rule, the sum over all passes is the gradient of the loss, at
the cost of one additional forward pass (gradient caching, Gao et al., 2021, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prefrec.lm.packing import PackedBatch
from prefrec.lm.scorer import ChoiceScorer


def logps_no_grad(scorer: ChoiceScorer, model: nn.Module, passes: Sequence[PackedBatch]) -> Tensor:
    """Return the log-probabilities [B, C] as a leaf tensor that requires a gradient."""
    # The random generator is forked, so that dropout is the same when the passes are repeated.
    device = passes[0].input_ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        logps = scorer.choice_logps(passes, model)
    return logps.requires_grad_()


def chain_rule_term(
    scorer: ChoiceScorer, model: nn.Module, batch: PackedBatch, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Σ slope × log-probability over the answers of one pass, and the slope [B, C] of the other answers."""
    logps = scorer.choice_logps([batch], model)
    # −inf is replaced before the product, because −inf × 0 is NaN.
    part = (logps.masked_fill(~batch.choice_mask, 0.0) * slope).sum()
    return part, slope.masked_fill(batch.choice_mask, 0.0)
