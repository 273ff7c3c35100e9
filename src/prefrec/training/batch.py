"""Choose the number of examples per pass on a GPU, if the settings do not."""

from __future__ import annotations

from typing import Any

TOKENS = 4000
"""Number of tokens from which the matrix products of a pass fully use a GPU."""
BYTES = 16
"""Memory of a training pass in 16 bits with LoRA, in bytes per token and per feature of hidden states and MLPs.

`prefrec_lab.forecast` estimates 10.5 to 12.6 for Llama models of 135 million to 8 billion weights.
"""


def rows_per_pass(least: int, per_step: int, tokens: float, room: float) -> int:
    """Return the number of examples per pass: `least`, doubled until they have `TOKENS` tokens.

    Args:
        least: minimum number of examples per pass.
        per_step: number of examples per optimiser step on this device, which must remain a multiple.
        tokens: average number of tokens per example.
        room: number of tokens that fit in memory.
    """
    rows = least
    while rows * tokens < TOKENS and per_step % (2 * rows) == 0 and 2 * rows * tokens <= room:
        rows *= 2
    return rows


def room_for(model: Any, free: float) -> float:
    """Return the number of tokens per pass that fit into half of the memory left beside the model.

    `free` is the free memory of the GPU in bytes, before the model's weights are moved there.
    """
    text = model.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu")
    return (free - weights) / 2 / (BYTES * text.num_hidden_layers * (text.hidden_size + inner))
