"""Defaults that recipes share with the trainers, without torch and transformers, which take seconds to import."""

from __future__ import annotations

from typing import Literal

LEARNING_RATE, SFT_LEARNING_RATE, ITEM_LEARNING_RATE = 1e-5, 5e-4, 2e-3
"""Peak learning rates: of an alignment, of SFT, and of item vectors in SFT."""
MAX_GRAD_NORM, SFT_MAX_GRAD_NORM, WARMUP = 0.3, 1.0, 0.05
BETA, LOSS = 1.0, "softmax_dpo"
MOST_EPOCHS = 1000
ALL_LINEAR, RANK = "all-linear", 16
"""Layers and rank of a new adapter."""
NegativesDrawn = Literal["fixed", "per_epoch"]
NEGATIVES: NegativesDrawn = "fixed"
CHAT, DISABLE_DROPOUT, PRECOMPUTE_REFERENCE = False, True, True
LEAST = 2
"""Least titles of a history that SFT trains on."""
