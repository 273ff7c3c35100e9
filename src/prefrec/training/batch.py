"""Rows per pass on a GPU, where the settings leave them open."""

from __future__ import annotations

from typing import Any

TOKENS = 4000
"""Tokens from which the products of a pass occupy a GPU."""
BYTES = 16
"""Bytes of a training pass for a token and a feature of each layer's hidden states and MLP, in 16 bits, with LoRA.

`prefrec_lab.forecast` finds 10.5 to 12.6 for Llamas of 135 million to 8 billion weights.
"""


def rows_per_pass(least: int, per_step: int, tokens: float, room: float) -> int:
    """Return how many rows a pass takes: `least`, doubled until they have `TOKENS` tokens.

    Args:
        least: rows of a pass at the least.
        per_step: rows of an optimiser step on this device, which must remain a multiple.
        tokens: of a row, on average.
        room: tokens that the memory has room for.
    """
    rows = least
    while rows * tokens < TOKENS and per_step % (2 * rows) == 0 and 2 * rows * tokens <= room:
        rows *= 2
    return rows


def room_for(model: Any, free: float) -> float:
    """Return the tokens of a pass for which half of `free` bytes of a GPU suffice, once the model is there."""
    text = model.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu")
    return (free - weights) / 2 / (BYTES * text.num_hidden_layers * (text.hidden_size + inner))
