"""Which model architectures can score all answers of a choice set in one packed row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefrec.lm.masks import MASKED_ATTENTION, MASKED_LAYERS, attention_implementation, layer_kinds
from prefrec.lm.packing import Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BRANCHING = frozenset(
    {
        "llama", "llama4_text", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
        "gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "gpt2", "gpt_bigcode", "gpt_neox", "gptj",
        "codegen", "gpt_oss", "phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe",
        "smollm3", "starcoder2", "stablelm", "exaone4", "glm4", "deepseek_v3", "ernie4_5", "nemotron",
        "seed_oss", "falcon",
    }
)  # fmt: skip
"""`config.model_type`s whose packed scores were compared with separate scores, and agree."""
RECURRENT = frozenset(
    {
        "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "jamba", "bamba", "zamba", "zamba2", "zaya",
        "recurrent_gemma", "nemotron_h", "granitemoehybrid", "falcon_h1", "olmo_hybrid", "bailing_hybrid",
        "kimi_linear", "minimax", "lfm2", "lfm2_moe", "qwen3_next", "deepseek_v4",
    }
)  # fmt: skip
"""`config.model_type`s with a recurrent state, regardless of their `layer_types`."""
_ALIBI = "ALiBi biases follow the columns, not the branches"
BY_COLUMN = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "gpt_neo": "its local attention is measured in columns, not in positions",
}
"""`config.model_type`s whose scores depend on a token's column in the row → the reason."""


def layout_for(config: PretrainedConfig) -> tuple[Layout, str]:
    """Return the layout that a model's configuration allows, and the reason.

    It is `separate` if a mask cannot keep answers apart, so that packed scores would be silently wrong: recurrent
    layers, positions derived from columns, and attention without a 4-D mask. Other models get `packed`; check those
    that are not in `BRANCHING` with `prefrec.lm.layout.verified_layout`.
    """
    name, implementation = config.model_type, attention_implementation(config)
    if name in RECURRENT:
        return "separate", f"model type {name!r} has a recurrent state, which cannot branch"
    if foreign := sorted(set(layer_kinds(config)) - MASKED_LAYERS):
        return "separate", f"layers of type {', '.join(foreign)} cannot branch (model type {name!r})"
    if by_column := BY_COLUMN.get(name) or (_ALIBI if getattr(config, "alibi", False) else None):
        return "separate", f"{by_column} (model type {name!r})"
    if implementation not in MASKED_ATTENTION:
        return "separate", f"attention implementation {implementation!r} does not accept a 4-D mask; use sdpa"
    if name not in BRANCHING:
        return "packed", f"model type {name!r} is not a known architecture: checked on the first batch"
    return "packed", f"model type {name!r} branches by its mask"
