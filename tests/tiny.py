"""Tiny models for unit tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 400


def tiny_llama(vocab_size: int = VOCABULARY, *, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random two-layer Llama whose weights are scaled ×4: with small ones a wrong mask hardly shows."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**sizes, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()
