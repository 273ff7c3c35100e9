"""The gradient of a loss over all answers of a choice set, while only some of them are in memory at a time.

A loss ties the answers of a choice set together, but only through their log-probabilities [B, C]. So these are
computed first, without gradient, pass by pass; the loss of them gives its slope by each; and then every pass is
made again, with the gradient of Σ slope × log-probability. By the chain rule the sum over the passes is the
gradient of the loss itself: no approximation, at the price of one more forward pass (gradient caching, Gao et al.,
2021, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.packing import PackedBatch
from prefrec.lm.scoring import choice_logps


def peek(model: nn.Module, passes: Sequence[PackedBatch], within: CatalogueSoftmax | None = None) -> Tensor:
    """Log-probabilities [B, C], a leaf that asks for its gradient; random numbers are drawn again afterwards.

    So dropout, where it is on, is the same when the passes are made again.
    """
    device = passes[0].input_ids.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        logps = choice_logps(model, *passes, within=within)
    return logps.requires_grad_()


def take_slope(
    model: nn.Module, batch: PackedBatch, slope: Tensor, within: CatalogueSoftmax | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of slope × log-probability over the answers of one pass, and the slope [B, C] of the others."""
    logps = choice_logps(model, batch, within=within)
    part = (logps.masked_fill(~batch.choice_mask, 0.0) * slope).sum()
    return part, slope.masked_fill(batch.choice_mask, 0.0)
