"""All losses of this repository, and log-probabilities and ratings to compute them on.

`LAB_LOSSES` needs prefrec-lab, by import and not by its entry points.
"""

import torch
from torch import Tensor

from prefrec.losses import COLUMNS, LOSSES, Loss, takes
from prefrec_lab.losses import (
    dynamicpo_loss,
    expected_reward_loss,
    ipo_loss,
    mult_dpo_loss,
    nca_loss,
    recpo_loss,
    robust_loss,
    simpo_loss,
    softmax_logq_loss,
    weighted_sft_loss,
)

LAB_LOSSES: dict[str, Loss] = {
    "mult_dpo": mult_dpo_loss,
    "recpo": recpo_loss,
    "dynamicpo": dynamicpo_loss,
    "expected_reward": expected_reward_loss,
    "weighted_sft": weighted_sft_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
    "nca": nca_loss,
    "simpo": simpo_loss,
    "softmax_logq": softmax_logq_loss,
}
ALL_LOSSES = LOSSES | LAB_LOSSES


def columns_for(loss: Loss, shape: torch.Size) -> dict[str, Tensor]:
    """Return scores or lengths from 1 to 5 for a loss that takes them."""
    numbers = (torch.arange(shape.numel()).view(shape) * 7 % 5 + 1.0).to(torch.float64)
    return {column: numbers for column in COLUMNS if takes(loss, column)}


def rows_of(*tables: Tensor) -> list[list[list[float]]]:
    """Return for each row of the tables its numbers in each."""
    return [list(map(list, row)) for row in zip(*(t.tolist() for t in tables), strict=True)]


def drawn(rows: int = 40, answers: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of policy and reference, and ratings from 1 to 5."""
    torch.manual_seed(0)
    policy, ref = (-8 * torch.rand(rows, answers, dtype=torch.float64) for _ in range(2))
    return policy, ref, torch.randint(1, 6, (rows, answers)).double()
