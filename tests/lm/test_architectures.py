"""Packed scores of many architectures against one full sequence an answer, on tiny random models."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from flex import uncompiled
from onednn import always_by_onednn
from prefrec.cpu.linear import OneDNNLinear, has_onednn, use_onednn
from prefrec.lm.architectures import BRANCHING, layout_for
from prefrec.lm.catalogue import catalogue_logps, trie_layout
from prefrec.lm.layout import verified_layout
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.lm.search import top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from slow import slow_logps

VOCABULARY = 80
WINDOW = 6
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
SETS = [
    ChoiceSet(tuple(range(10, 26)), ((30, 31, 36, 39, 2), (32, 37, 30, 2), (33, 34, 35, 38, 31, 2), (41, 42, 30, 2))),
    ChoiceSet(tuple(range(40, 49)), ((50, 2), (51, 52, 53, 54, 2), (30, 2), (2,))),
]
"""Two prompts of different lengths, both longer than the window; answers long enough that a wrong mask shows."""
TITLES = (
    (30, 31, 2), (32, 2), (33, 34, 35, 2), (30, 31, 36, 37, 2), (30, 2), (32, 2), (33, 34, 38, 39, 40, 2), (30, 31),
    (33, 34, 38, 39, 40, 41, 42, 43, 2),
)  # fmt: skip
"""Shared prefixes, a title that others begin with, a duplicate, and one longer than the window."""


@dataclass(frozen=True)
class Case:
    """A tiny model: its type, what its configuration has beside `SIZES`, and how far its weights are scaled."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    implementations: tuple[str, ...] = ("sdpa", "eager")
    scale: float = 4.0
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.model_type


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
LLAMA4 = {
    "layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0],
    "num_local_experts": 2, "moe_layers": [1], "intermediate_size_mlp": 64,
}  # fmt: skip
DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 16,
}  # fmt: skip
QWEN3_NEXT = {
    "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128}


def _window(layers_without: int) -> dict[str, Any]:
    return {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": layers_without}


PLAIN = (
    "llama", "qwen3", "gpt_neox", "phi", "phi3", "olmo", "olmo2", "granite", "stablelm", "glm4", "ernie4_5",
    "nemotron",
)  # fmt: skip
PACKED = [
    *(Case(model_type) for model_type in PLAIN),
    *(Case(model_type, scale=6) for model_type in ("qwen2", "gemma", "seed_oss")),
    *(Case(model_type, MIXED) for model_type in ("olmo3", "exaone4")),
    Case("mistral", {"sliding_window": None}),
    Case("mistral", {"sliding_window": WINDOW}, label="mistral with a window"),
    Case("mixtral", {"sliding_window": WINDOW, "num_local_experts": 4}, label="mixtral with a window"),
    Case("ministral", {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2}),
    Case("qwen2", _window(1), label="qwen2 with a window in one layer"),
    Case("qwen2", _window(0), label="qwen2 with a window in all layers"),
    Case("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 16}),
    Case("qwen3", _window(1), label="qwen3 with a window in one layer"),
    Case("qwen3_moe", MOE),
    Case("gemma2", {**MIXED, "query_pre_attn_scalar": 8}, ("eager",)),
    Case("gemma3_text", {**MIXED, "query_pre_attn_scalar": 8}),
    Case("cohere", scale=16),
    Case("cohere2", MIXED, scale=16),
    Case("gpt2", {"n_positions": 128}, scale=6),
    Case("gpt_bigcode", {"n_positions": 128}),
    Case("gptj", GPTJ),
    Case("codegen", GPTJ, scale=6),
    Case("gpt_oss", {**MIXED, "num_local_experts": 4}, ("eager",)),
    Case("llama4_text", LLAMA4),
    Case("phi3", {"sliding_window": WINDOW}, label="phi3 with a window"),
    Case("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, scale=6),
    Case("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Case("granitemoe", {"num_local_experts": 4}),
    Case("smollm3", {"no_rope_layers": [1, 0]}, scale=8),
    Case("starcoder2", {"sliding_window": WINDOW}),
    Case("deepseek_v3", DEEPSEEK),
    Case("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}, scale=6),
]
SEPARATE = [
    Case("qwen3_next", MOE | QWEN3_NEXT),
    Case("lfm2", {"layer_types": ["conv", "full_attention"]}),
    Case("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8}),
    Case("mamba", {"state_size": 8}),
    Case("rwkv", {"attention_hidden_size": 32}),
    Case("bloom", {"n_layer": 2, "n_head": 4}),
    Case("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    Case("falcon", {"alibi": True}, label="falcon with alibi"),
    Case("gpt_neo", GPT_NEO),
]


def tiny(case: Case, implementation: str | None = None) -> nn.Module:
    """The case's model in evaluation mode, its weights scaled: small ones hide a wrong mask."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if (case.model_type, k) != ("falcon", "head_dim")}
    config = AutoConfig.for_model(case.model_type, **{**sizes, **case.settings})
    if implementation == "sdpa" and not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa:
        pytest.skip(f"{case.model_type} has no sdpa in this version of transformers")
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(case.scale)
    return model.eval()


def slow(model: nn.Module) -> Tensor:
    return torch.stack([slow_logps(model, c) for c in SETS])


def assert_shown(model: nn.Module, want: Tensor) -> None:
    """A mask that does not tell answers apart gives visibly other scores."""
    batch = pack(SETS[:1], pad_id=0)
    wrong = choice_logps(model, replace(batch, attention_mask=torch.ones_like(batch.attention_mask).tril()))
    assert (wrong[0] - want[0]).abs().max() > 0.05, "a wrong mask would not show"


EACH = [pytest.param(case, i, id=f"{case.name}, {i}") for case in PACKED for i in case.implementations]
each_packed = pytest.mark.parametrize(("case", "implementation"), EACH)


def test_the_table_of_scoring_is_the_table_of_this_file():
    assert {c.model_type for c in PACKED} == BRANCHING


@each_packed
def test_packed_equals_one_sequence_an_answer(case, implementation):
    model = tiny(case, implementation)
    assert layout_for(model.config)[0] == "packed"
    assert verified_layout(model, SETS[0], 0, "packed")[0] == "packed"
    with torch.no_grad():
        want = slow(model)
        for layout in ("packed", "separate"):
            got = choice_logps(model, pack(SETS, pad_id=0, layout=layout))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        assert_shown(model, want)


@pytest.mark.parametrize("case", PACKED, ids=lambda c: c.name)
def test_flex_attention_equals_one_sequence_an_answer(case):
    """Not compiled, as compiling takes minutes on a CPU; compiled it is in `test_attention.py`, on a GPU."""
    model = tiny(case)
    if not type(model)._supports_flex_attn:
        pytest.skip(f"{case.model_type} has no flex_attention in transformers")
    if case.model_type == "gpt_oss":
        pytest.skip("flex_attention has no attention sinks on a CPU")
    with torch.no_grad():
        want = slow(model if case.implementations[0] == "sdpa" else tiny(case, "eager"))
    model.set_attn_implementation("flex_attention")
    assert layout_for(model.config)[0] == "packed"
    with torch.no_grad(), uncompiled():
        torch.testing.assert_close(choice_logps(model, pack(SETS, pad_id=0)), want, rtol=0, atol=1e-4)
        assert_shown(model, want)


@pytest.mark.skipif(not has_onednn(), reason="this torch was built without oneDNN")
@pytest.mark.parametrize("case", [c for c in PACKED if "sdpa" in c.implementations], ids=lambda c: c.name)
def test_onednn_s_attention_equals_one_sequence_an_answer(case, monkeypatch):
    """However few the scores are; where a model does not ask for attention by name, it is torch's as ever."""
    model, prompt, trie = tiny(case, "sdpa"), SETS[0].prompt, Trie.build(TITLES)
    monkeypatch.setenv("PREFREC_LINEAR", "torch")
    with torch.no_grad():
        want, titles = slow(model), slow_logps(model, ChoiceSet(prompt, TITLES)).numpy()
    calls = always_by_onednn(monkeypatch)
    use_onednn(model)
    with torch.no_grad():
        torch.testing.assert_close(choice_logps(model, pack(SETS, pad_id=0)), want, rtol=0, atol=1e-4)
        has_layers = any(isinstance(m, OneDNNLinear) for m in model.modules())
        assert bool(calls) == (model._supports_attention_backend and has_layers)
        assert_shown(model, want)
    got = catalogue_logps(model, prompt, trie, block_tokens=3)
    np.testing.assert_allclose(got, titles, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [c for c in PACKED if WINDOW in c.settings.values()], ids=lambda c: c.name)
def test_windows_matter(case, monkeypatch):
    """Prompts are longer than the window: without it the test above would fail."""
    model = tiny(case, case.implementations[0])
    with torch.no_grad():
        want = slow(model)
        monkeypatch.setattr("prefrec.lm.masks._within_reach", lambda kind, config, allowed, position_ids: allowed)
        wrong = choice_logps(model, pack(SETS, pad_id=0))
    assert (wrong - want).abs().max() > 0.05


@each_packed
def test_a_trie_equals_one_sequence_an_answer(case, implementation):
    """In one block and in several, with the prompt's keys and values kept and with the prompt repeated."""
    model, prompt, trie = tiny(case, implementation), SETS[0].prompt, Trie.build(TITLES)
    with torch.no_grad():
        want = slow_logps(model, ChoiceSet(prompt, TITLES)).numpy()
    for layout in ("cached", "repeated"):
        for block_tokens in (1024, 3):
            got = catalogue_logps(model, prompt, trie, layout=layout, block_tokens=block_tokens)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert trie_layout(model, prompt, trie)[0] == "cached"
    best = top_k(model, prompt, trie, 4, width=2)
    np.testing.assert_allclose(best.logps, np.sort(want)[::-1][:4], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gemma3_text"])
def test_gradients_equal_one_sequence_an_answer(name):
    case = next(c for c in PACKED if c.name == name)
    weights = torch.tensor([[1.0, -0.5, 0.25, 0.8], [0.3, -1.0, 2.0, -0.4]])
    grads = []
    for packed in (True, False):
        model = tiny(case, case.implementations[-1])
        logps = choice_logps(model, pack(SETS, pad_id=0)) if packed else slow(model)
        (weights * logps).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    scale = grads[1].abs().max()
    torch.testing.assert_close(grads[0] / scale, grads[1] / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", SEPARATE, ids=lambda c: c.name)
def test_models_that_cannot_branch_are_scored_one_sequence_an_answer(case):
    """And read a trie one path a row. Were the table not to know them, the check on the first batch would tell."""
    model, prompt, trie = tiny(case), SETS[0].prompt, Trie.build(TITLES)
    for layout, reason in (layout_for(model.config), trie_layout(model, prompt, trie)):
        assert layout == "separate"
        assert case.model_type in reason
    assert verified_layout(model, SETS[0], 0, "packed")[0] == "separate"
    with torch.no_grad():
        got = choice_logps(model, pack(SETS, pad_id=0, layout=layout))
        torch.testing.assert_close(got, slow(model), rtol=0, atol=1e-4)
        want = slow_logps(model, ChoiceSet(prompt, TITLES)).numpy()
    np.testing.assert_allclose(catalogue_logps(model, prompt, trie, layout=layout), want, rtol=0, atol=1e-4)
    best = top_k(model, prompt, trie, 4, layout=layout, width=2)
    np.testing.assert_allclose(best.logps, np.sort(want)[::-1][:4], rtol=0, atol=1e-4)
