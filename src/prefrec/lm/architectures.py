"""Model architectures: which can score the answers of a choice set in one packed row."""

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
"""`config.model_type`s for which packed and separate scores were compared and agree."""
RECURRENT = frozenset(
    {
        "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "jamba", "bamba", "zamba", "zamba2", "zaya",
        "recurrent_gemma", "nemotron_h", "granitemoehybrid", "falcon_h1", "olmo_hybrid", "bailing_hybrid",
        "kimi_linear", "minimax", "lfm2", "lfm2_moe", "qwen3_next", "deepseek_v4",
    }
)  # fmt: skip
"""`config.model_type`s with a state that passes from token to token, whatever their `layer_types` say."""
_ALIBI = "ALiBi biases follow the columns, not the branches"
BY_COLUMN = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "gpt_neo": "its local attention is measured in columns, not in positions",
}
"""`config.model_type`s that depend on a token's column in the row, and the reason."""


def layout_for(config: PretrainedConfig) -> tuple[Layout, str]:
    """Return the layout that the configuration of a model allows, and the reason.

    It is `separate` if a mask cannot keep answers apart, so that packed scores would be silently wrong: layers with a
    state, positions from columns, and attention without a mask of pairs. Other models get `packed`; check those not
    in `BRANCHING` with `prefrec.lm.layout.verified_layout`.

    Args:
        config: configuration of the model.
    """
    name, implementation = config.model_type, attention_implementation(config)
    if name in RECURRENT:
        return "separate", f"model type {name!r} passes a state from token to token, which cannot branch"
    if foreign := sorted(set(layer_kinds(config)) - MASKED_LAYERS):
        return "separate", f"layers of type {', '.join(foreign)} cannot branch (model type {name!r})"
    if by_column := BY_COLUMN.get(name) or (_ALIBI if getattr(config, "alibi", False) else None):
        return "separate", f"{by_column} (model type {name!r})"
    if implementation not in MASKED_ATTENTION:
        return "separate", f"attention implementation {implementation!r} does not take a mask of pairs; use sdpa"
    if name not in BRANCHING:
        return "packed", f"model type {name!r} is not in the table: checked on the first batch"
    return "packed", f"model type {name!r} branches by its mask"
