"""prefrec.lm.attention: which attention is used for a batch, and that FlexAttention gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

from flex import uncompiled
from prefrec.lm import attention
from prefrec.lm.attention import fastest_attention, measurable, measure, measure_new_shapes
from prefrec.lm.catalogue import catalogue_logps
from prefrec.lm.masks import BLOCK, FLEX
from prefrec.lm.models import measure_attention
from prefrec.lm.packing import pack
from prefrec.lm.scorer import ChoiceScorer
from prefrec.lm.scoring import choice_logps
from prefrec.lm.search import top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from slow import slow_logps
from tiny import tiny_llama

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
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
    },
}


def made(name: str, implementation: str = "sdpa", **more):
    """A tiny model of a type, its weights scaled."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 150,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(name, **sizes, **MODELS[name], **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return model.eval()


def scored(model, batch):
    """Log-probabilities [B, C] by a scorer, which measures the attention first."""
    return ChoiceScorer(model, 0, layout="packed").choice_logps([batch])


def logps_and_gradient(model, device="cpu"):
    """Log-probabilities [B, C], and the gradient of a weighted sum of them."""
    weights = torch.linspace(-1, 2, 8, device=device).view(2, 4)
    logps = scored(model, pack(SETS, pad_id=0).to(device))
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


def test_rows_reach_the_model_in_whole_blocks_and_the_head_where_answers_are_read_alone():
    model, rows, kept = made("llama", FLEX), [], []
    model.register_forward_pre_hook(lambda m, args, kw: rows.append(kw["input_ids"].shape), with_kwargs=True)
    model.lm_head.register_forward_hook(lambda m, args, out: kept.append(tuple(out.shape)))
    batch = pack(SETS, pad_id=0)
    with torch.no_grad(), uncompiled():
        choice_logps(model, batch)
    assert rows == [(2, 2 * BLOCK)]
    read = set(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    assert kept == [(1, len(read), model.config.vocab_size)]
    assert len(read) < len(SETS) * batch.logits_to_keep


def test_flex_attention_refuses_gradients_on_a_cpu():
    with uncompiled(), pytest.raises(NotImplementedError, match="backward on CPU"):
        choice_logps(made("llama", FLEX), pack(SETS, pad_id=0))


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


class TestMeasured:
    """A model whose attention is to be measured, on a CPU that passes for a GPU."""

    @pytest.fixture(autouse=True)
    def _pretend(self, monkeypatch):
        monkeypatch.setattr(attention, "measurable", lambda core, device: True)
        monkeypatch.setattr(attention, "TIMES", 1)
        monkeypatch.setenv("PREFREC_LINEAR", "torch")  # on a GPU oneDNN stands in for nothing
        with uncompiled():
            yield

    @pytest.fixture
    def model(self):
        model = made("gemma3_text")
        measure_attention(model)
        return model

    @staticmethod
    def spent(monkeypatch, flex: float, sdpa: float) -> list[str]:
        """Let the ways take these seconds; a list of what has been timed."""
        timed, real = [], attention._seconds

        def seconds(core, batch, implementation):
            timed.append(implementation)
            return {FLEX: flex, "sdpa": sdpa}[implementation], real(core, batch, implementation)[1]

        monkeypatch.setattr(attention, "_seconds", seconds)
        return timed

    @staticmethod
    def watched(model) -> list[str]:
        """A list of the implementations that the model's forward passes run under."""
        seen: list[str] = []
        model.register_forward_pre_hook(lambda m, args: seen.append(m.config._attn_implementation))
        return seen

    @pytest.mark.parametrize(("flex", "sdpa", "faster"), [(1.0, 2.0, FLEX), (2.0, 1.0, "sdpa")])
    def test_the_faster_is_used_and_the_numbers_are_the_same(self, model, monkeypatch, flex, sdpa, faster):
        timed, seen = self.spent(monkeypatch, flex, sdpa), self.watched(model)
        with torch.no_grad():
            got = scored(model, pack(SETS, pad_id=0))
            want = choice_logps(made("gemma3_text"), pack(SETS, pad_id=0))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        assert seen == [faster]
        assert timed == ["sdpa", FLEX]
        assert model.config._attn_implementation == "sdpa", "what comes after is as it was"

    def test_each_shape_is_measured_once(self, model, monkeypatch):
        timed = self.spent(monkeypatch, 1.0, 2.0)
        with torch.no_grad():
            for _ in range(3):
                scored(model, pack(SETS, pad_id=0))
            assert len(timed) == 2
            scored(model, pack(SETS[1:], pad_id=0))
        assert len(timed) == 4
        assert {shape[1:3] for shape in model.attention_by_shape} == {(2, 2), (1, 1)}

    def test_scoring_alone_measures_nothing(self, model, monkeypatch):
        timed, seen = self.spent(monkeypatch, 1.0, 2.0), self.watched(model)
        with torch.no_grad():
            choice_logps(model, pack(SETS, pad_id=0))
        assert (timed, seen, model.attention_by_shape) == ([], ["sdpa"], {})

    def test_one_sequence_an_answer_is_not_measured(self, model, monkeypatch):
        timed, seen = self.spent(monkeypatch, 1.0, 2.0), self.watched(model)
        with torch.no_grad():
            scored(model, pack(SETS, pad_id=0, layout="separate"))
        assert (timed, seen) == ([], ["sdpa"])

    def test_a_model_that_was_told_is_not_measured(self, monkeypatch):
        model, timed = made("gemma3_text", "eager"), self.spent(monkeypatch, 1.0, 2.0)
        measure_attention(model)
        seen = self.watched(model)
        with torch.no_grad():
            scored(model, pack(SETS, pad_id=0))
        assert (timed, seen) == ([], ["eager"])

    def test_a_later_choice_stands(self, model, monkeypatch):
        timed, seen = self.spent(monkeypatch, 1.0, 2.0), self.watched(model)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            scored(model, pack(SETS, pad_id=0))
        assert (timed, seen, model.config._attn_implementation) == ([], ["eager"], "eager")

    def test_what_cannot_be_compiled_is_left_alone(self, model, monkeypatch, capsys):
        def refuse(*args, **kwargs):
            raise RuntimeError("no triton here\nand more")

        monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS, FLEX, refuse)
        with torch.no_grad():
            assert measure(model, pack(SETS, pad_id=0)) == "sdpa"
        assert "flex_attention fails: RuntimeError: no triton here" in " ".join(capsys.readouterr().err.split())

    def test_what_gives_other_numbers_is_left_alone(self, model, monkeypatch):
        self.spent(monkeypatch, 1.0, 2.0)
        real = attention.ALL_ATTENTION_FUNCTIONS[FLEX]
        shifted = lambda *args, **kwargs: (real(*args, **kwargs)[0] + 0.01, None)  # noqa: E731
        with torch.no_grad():
            assert measure(model, pack(SETS, pad_id=0)) == FLEX
            monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS, FLEX, shifted)
            assert measure(model, pack(SETS, pad_id=0)) == "sdpa"

    def test_random_numbers_are_left_alone(self, model):
        torch.manual_seed(5)
        want = torch.rand(3)
        torch.manual_seed(5)
        with torch.no_grad():
            measure(model, pack(SETS, pad_id=0))
        assert torch.equal(torch.rand(3), want)

    def test_both_passes_are_timed_where_gradients_are_on(self, model, monkeypatch, flex_gradients):
        backward, real = [], torch.autograd.grad
        monkeypatch.setattr(torch.autograd, "grad", lambda *args: backward.append(1) or real(*args))
        measure(model, pack(SETS, pad_id=0))
        assert backward
        backward.clear()
        with torch.no_grad():
            measure(model, pack(SETS, pad_id=0))
        assert not backward

    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_layers_that_run_again_attend_in_the_same_way(self, monkeypatch, flex_gradients, checkpointed):
        """Under gradient checkpointing the backward pass comes to the layers again."""
        self.spent(monkeypatch, 1.0, 2.0)
        want = logps_and_gradient(made("mistral"))
        model = made("mistral").train()
        measure_attention(model)
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert_alike(logps_and_gradient(model), want)
        assert model.config._attn_implementation == (FLEX if checkpointed else "sdpa")


def test_there_is_nothing_to_measure_on_a_cpu():
    model = made("llama")
    measure_attention(model)
    assert not measurable(model, torch.device("cpu"))
    measure_new_shapes(model, [pack(SETS, pad_id=0)])
    with fastest_attention(model, pack(SETS, pad_id=0)) as batch:
        assert batch.input_ids.shape[1] % BLOCK
    assert model.attention_by_shape == {}


@pytest.mark.parametrize(
    ("name", "more", "training", "choice"),
    [
        ("llama", {}, True, True),
        ("llama", {"attention_dropout": 0.1}, True, False),
        ("llama", {"attention_dropout": 0.1}, False, True),
    ],
)
def test_what_can_be_measured_on_a_gpu(name, more, training, choice):
    assert measurable(made(name, **more).train(training), torch.device("cuda")) == choice


def test_heads_of_two_widths_are_not_measured():
    core = tiny_llama()
    core.config.kv_lora_rank = 16
    assert not measurable(core, torch.device("cuda"))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for GPUs; there is none")
class TestOnAGPU:
    @pytest.mark.parametrize("name", MODELS)
    def test_flex_attention_has_the_scores_and_gradients_of_sdpa(self, name):
        want = logps_and_gradient(made(name, head_dim=16).cuda(), "cuda")
        assert_alike(logps_and_gradient(made(name, FLEX, head_dim=16).cuda(), "cuda"), want)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_faster_is_found(self, dtype):
        model = made("llama", head_dim=16).to("cuda", dtype)
        measure_attention(model)
        with torch.no_grad():
            got = scored(model, pack(SETS, pad_id=0).to("cuda"))
            want = choice_logps(made("llama", head_dim=16).to("cuda", dtype), pack(SETS, pad_id=0).to("cuda"))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.5)
        assert set(model.attention_by_shape.values()) <= {FLEX, "sdpa"}
        assert len(model.attention_by_shape) == 1
