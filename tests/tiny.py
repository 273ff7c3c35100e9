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


class _Broken(LlamaForCausalLM):
    """A Llama that does not do what it is told, as a model of an unknown architecture might."""

    fault = ""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            if self.fault == "refuses the mask":
                raise ValueError(f"a mask of shape [{attention_mask.shape}] is no mask")
            if self.fault == "ignores the mask":
                attention_mask = None
            if self.fault == "ignores positions":
                position_ids = None
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )


def broken(model: LlamaForCausalLM, fault: str = "ignores the mask") -> LlamaForCausalLM:
    """`model`, that from now on `ignores the mask` of a packed batch, `ignores positions` or `refuses the mask`."""
    model.__class__ = _Broken
    model.fault = fault
    return model
