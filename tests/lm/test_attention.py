"""prefrec.lm.attention: FlexAttention gives the numbers of sdpa."""

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

from flex import uncompiled
from prefrec.lm.catalogue import catalogue_logps
from prefrec.lm.masks import FLEX
from prefrec.lm.packing import pack
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import choice_logps
from prefrec.lm.search import top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from slow import slow_logps

WINDOW = 6
SETS = [
    ChoiceSet(tuple(range(10, 130)), ((30, 31, 2), (32, 2), (33, 34, 35, 2), tuple(range(40, 60)))),
    ChoiceSet(tuple(range(40, 49)), ((50, 2), (51, 52, 53, 54, 2), (30, 2), (7, 2))),
]
"""The longer row has 149 tokens: two blocks."""
MODELS = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8,
                    "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip
SIZES = {
    "vocab_size": 150, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def made(name: str, implementation: str = "sdpa", **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES, **MODELS[name], **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
    return model.eval()


def logps_and_gradient(model, device="cpu"):
    weights = torch.linspace(-1, 2, 8, device=device).view(2, 4)
    logps = choice_logps(model, pack(SETS, pad_id=0).to(device))
    (weights * logps).sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_alike(got, want, atol=1e-4):
    """Both log-probabilities and gradients, the latter in units of the largest."""
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=atol)
    scale = want[1].abs().max()
    torch.testing.assert_close(got[1] / scale, want[1] / scale, rtol=0, atol=atol)


@pytest.fixture
def flex_gradients(monkeypatch):
    """torch refuses gradients of FlexAttention on a CPU, though the uncompiled form has them."""
    module = torch.nn.attention.flex_attention
    if not hasattr(module, "_validate_device"):
        pytest.skip("this torch checks the device elsewhere")
    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)


@pytest.mark.parametrize("name", MODELS)
def test_flex_attention_has_the_scores_and_gradients_of_sdpa(name, flex_gradients):
    want = logps_and_gradient(made(name))
    with uncompiled():
        assert_alike(logps_and_gradient(made(name, FLEX)), want)


def test_prompts_that_could_share_a_row_have_the_scores_of_sdpa():
    """Each prompt is that of the same user with one item more, so it goes on before the end of the one before."""
    histories = (10,), (10, 11), (10, 11, 12)
    answers = ((20, 21, 2), (22, 2)), ((23, 2), (24, 25, 2)), ((26, 2), (27, 28, 2))
    sets = [ChoiceSet((3, 4, *h, 9), a) for h, a in zip(histories, answers, strict=True)]
    shared = ChoiceScorer(made("llama"), 0, layout="packed", share=True)
    flex = ChoiceScorer(made("llama", FLEX), 0, layout="packed", share=True)
    assert len(shared.pack(sets)[0].input_ids) == 1
    with uncompiled():
        torch.testing.assert_close(flex.score(sets), shared.score(sets), rtol=0, atol=1e-4)


def test_a_catalogue_read_by_flex_attention():
    titles = ((30, 31, 2), (32, 2), (33, 34, 35, 2), (30, 31, 36, 37, 2), (30, 2), (33, 34, 38, 39, 40, 2))
    prompt, trie = SETS[0].prompt, Trie.build(titles)
    for name in ("llama", "gemma3_text"):
        with torch.no_grad(), uncompiled():
            want = slow_logps(made(name), ChoiceSet(prompt, titles)).numpy()
            for layout in ("cached", "repeated"):
                got = catalogue_logps(made(name, FLEX), prompt, trie, layout=layout, block_tokens=3)
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
            best = top_k(made(name, FLEX), prompt, trie, 3, width=2)
        np.testing.assert_allclose(best.logps, np.sort(want)[::-1][:3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_that_run_again_attend_in_the_same_way(flex_gradients, checkpointed):
    want = logps_and_gradient(made("mistral"))
    model = made("mistral", FLEX).train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with uncompiled():
        assert_alike(logps_and_gradient(model), want)
    assert model.config._attn_implementation == FLEX


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for GPUs; there is none")
class TestOnAGPU:
    @pytest.mark.parametrize("name", MODELS)
    def test_flex_attention_has_the_scores_and_gradients_of_sdpa(self, name):
        want = logps_and_gradient(made(name, head_dim=16).cuda(), "cuda")
        assert_alike(logps_and_gradient(made(name, FLEX, head_dim=16).cuda(), "cuda"), want)
