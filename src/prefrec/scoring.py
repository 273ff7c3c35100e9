"""The one function that scores answers: log-probabilities of choice sets under a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrec.packing import Layout, PackedBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BRANCHING = frozenset(
    {
        "llama", "qwen2", "qwen3", "qwen3_moe", "gemma", "gpt_neox", "phi3", "smollm3", "olmo2", "granite",
        "falcon", "gpt2", "opt", "mistral", "mixtral",
    }
)  # fmt: skip
"""`config.model_type`s for which packed and separate scores were compared and agree."""


def choice_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Log-probabilities of the answers, [B, C] in float32.

    Each is the sum over the answer's tokens, end token included, of the full-vocabulary log-probability;
    there is no length penalty. Entries outside `batch.choice_mask` are −inf. Gradients flow to the model.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        batch: from `prefrec.packing.pack`, on the model's device.
    """
    return sum_by_choice(answer_token_logps(model, batch), batch)


def answer_token_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Log-probability of every answer token, [M] in float32 (M as in `PackedBatch`)."""
    length = batch.input_ids.shape[1]
    # Kept columns as indices, not as a number: the model then gathers them into contiguous memory, and the
    # head is one matrix product (a sliced view costs a copy of the head's weights for every row).
    kept = torch.arange(length - batch.logits_to_keep, length, device=batch.input_ids.device)
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=kept,
        use_cache=False,
    ).logits
    return -F.cross_entropy(logits[batch.rows, batch.columns].float(), batch.targets, reduction="none")


def sum_by_choice(token_logps: Tensor, batch: PackedBatch) -> Tensor:
    """Sum token log-probabilities [M] into those of the answers, [B, C]; −inf where there is no answer."""
    sums = torch.zeros(batch.choice_mask.numel(), dtype=token_logps.dtype, device=token_logps.device)
    sums = sums.index_add(0, batch.choices, token_logps)
    return sums.view(batch.choice_mask.shape).masked_fill(~batch.choice_mask, -torch.inf)


def layout_for(config: PretrainedConfig) -> tuple[Layout, str]:
    """The layout that is right for a model, and why.

    `packed` for models known to keep prompt and answer apart by the mask alone; `separate` for all others:
    sliding windows, recurrent or linear-attention layers and unknown architectures, where a packed row would
    be silently wrong.
    """
    if config.model_type not in BRANCHING:
        return "separate", f"the packed layout is not verified for model type {config.model_type!r}"
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        return (
            "separate",
            f"layers of type {', '.join(sorted(layer_types - {'full_attention'}))} cannot branch",
        )
    if config.model_type in ("mistral", "mixtral", "phi3") and getattr(config, "sliding_window", None):
        return "separate", f"a sliding window of {config.sliding_window} tokens"
    if getattr(config, "_attn_implementation", "sdpa") != "sdpa":
        return "separate", f"attention implementation {config._attn_implementation!r} takes no boolean mask"
    if config.model_type == "falcon" and getattr(config, "alibi", False):
        return "separate", "ALiBi positions follow the columns, not the branches"
    return "packed", f"model type {config.model_type!r} branches by its mask"
