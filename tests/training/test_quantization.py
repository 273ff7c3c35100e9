"""QLoRA: adapters in float32 on a base in 4 bits, on a CPU or wherever bitsandbytes runs."""

import copy
import importlib.util
import math

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from prefrec.errors import ConfigError, ModelError
from prefrec.lm.layout import verified_layout
from prefrec.lm.models import is_quantized, load_model
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import ChoiceSet
from prefrec.training import load_adapter, lora_config
from quantized import skip_where_it_does_not_run
from slow import slow_logps
from tiny import tiny_llama
from tiny_run import write_model
from tiny_training import draw_adapters, losses, trainable

SETS = [
    ChoiceSet(tuple(range(10, 26)), ((30, 31, 2), (32, 2), (33, 34, 35, 2))),
    ChoiceSet(tuple(range(40, 49)), ((50, 2), (51, 52, 53, 54, 2), (30, 2))),
]
both_forms = pytest.mark.parametrize("form", ["nf4", "nf4-double"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    skip_where_it_does_not_run()
    return write_model(tmp_path_factory.mktemp("models") / "model", bpe_tokenizer)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A saved model whose weights show a wrong mask."""
    skip_where_it_does_not_run()
    path = tmp_path_factory.mktemp("models") / "scaled"
    tiny_llama().save_pretrained(path)
    return path


def nf4(path, dtype="float32", form="nf4"):
    return load_model(str(path), dtype=dtype, quantization=form)


def packed(model, layout="packed"):
    return pack(SETS, pad_id=0, layout=layout).to(model.device)


def adapted(model):
    torch.manual_seed(1)
    model = get_peft_model(model, lora_config(4))
    draw_adapters(model, 0.02)
    return model


def gradients(model):
    """Of a weighted sum of the answers' log-probabilities, by name of the parameter."""
    weights = torch.tensor([[1.0, -0.5, 0.25], [0.3, -1.0, 2.0]], device=model.device)
    (weights * choice_logps(model, packed(model))).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("form", "dtype"), [("nf4", "float32"), ("nf4-double", "bfloat16")])
def test_only_the_layers_matrices_are_in_4_bits(folder, dtype, form):
    plain, model = AutoModelForCausalLM.from_pretrained(folder), nf4(folder, dtype, form)
    assert is_quantized(model)
    assert not is_quantized(plain)
    assert not model.training
    for name, p in model.named_parameters():
        in_4_bits = name.endswith("_proj.weight")
        assert p.dtype == (torch.uint8 if in_4_bits else getattr(torch, dtype)), name
        assert p.numel() == plain.get_parameter(name).numel() / (2 if in_4_bits else 1), name
    assert {p.dtype for p in trainable(adapted(model)).values()} == {torch.float32}


def test_double_also_rounds_the_scales(scaled):
    once, twice = (nf4(scaled, form=form) for form in ("nf4", "nf4-double"))
    state = once.model.layers[0].mlp.up_proj.weight.quant_state
    rounded = twice.model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.absmax.dtype, state.nested) == (torch.float32, False)
    assert (rounded.absmax.dtype, rounded.nested) == (torch.uint8, True)
    one, other = (m.dequantize().model.layers[0].mlp.up_proj.weight for m in (once, twice))
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


@both_forms
def test_packed_equals_separate(scaled, form):
    model, plain = nf4(scaled, form=form), tiny_llama()
    with torch.no_grad():
        want = torch.stack([slow_logps(model, c) for c in SETS])
        for layout in ("packed", "separate"):
            torch.testing.assert_close(choice_logps(model, packed(model, layout)), want, rtol=0, atol=1e-4)
        unlike = (choice_logps(plain, packed(plain)) - want.cpu()).abs().max()
    assert verified_layout(model, SETS[0], 0, "packed")[0] == "packed"
    assert unlike > 0.01, "nothing was quantised"


@both_forms
def test_scores_and_gradients_are_those_of_the_plain_weights_that_4_bits_stand_for(scaled, form):
    model = adapted(nf4(scaled, form=form))
    plain = adapted(nf4(scaled, form=form).dequantize())
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    got, want = gradients(model), gradients(plain)
    assert got
    assert got.keys() == want.keys()
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


def test_evaluation_computes_what_training_does(scaled):
    """Without gradients bitsandbytes would compute in another way, on a CPU that has the instructions."""
    model = nf4(scaled)
    with torch.no_grad():
        scored = choice_logps(model.eval(), packed(model))
    trained = choice_logps(adapted(copy.deepcopy(model)).train(), packed(model)).detach()
    bare = choice_logps(model.train(), packed(model)).detach()
    torch.testing.assert_close(scored, bare, rtol=0, atol=1e-5)
    assert (scored - trained).abs().max() > 1e-3, "the adapter counts"


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(sft, folder, reentrant):
    """As the trainer switches it on: PEFT leaves the inputs of a 4-bit base without gradients."""
    weights = []
    for checkpointed in (False, True):
        how = {"gradient_checkpointing": checkpointed, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        trainer = sft(adapted(nf4(folder)), max_steps=2, **how, train=True)
        weights.append(trainable(trainer.model))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
    assert any((weights[1][n] - p).abs().max() > 1e-3 for n, p in trainable(adapted(nf4(folder))).items())


@pytest.mark.parametrize(("bf16", "precompute"), [(False, True), (True, False)])
def test_sft_then_alignment(sft, sdpo, scaled, tmp_path, bf16, precompute):
    """Both stages learn; the base and the reference stay; the loss of alignment begins at ln(1 + N)."""
    dtype = "bfloat16" if bf16 else "float32"
    first = sft(nf4(scaled, dtype), folder=tmp_path / "sft", peft_config=lora_config(4), max_steps=12, bf16=bf16)
    first.train()
    first.model.save_pretrained(tmp_path / "adapter")
    changes = {"max_steps": 12, "learning_rate": 2e-2, "per_device_train_batch_size": 8, "beta": 0.5, "bf16": bf16}
    changes |= {"folder": tmp_path / "align", "precompute_ref_log_probs": precompute}
    trainer = sdpo(load_adapter(nf4(scaled, dtype), tmp_path / "adapter", is_trainable=True), **changes)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert losses(first)[-1] < losses(first)[0] - 0.5
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=0.1 if bf16 else 1e-4)
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.2
    assert {p.dtype for p in trainable(trainer.model).values()} == {torch.float32}
    assert {p.dtype for n, p in frozen.items() if ".base_layer." in n} == {torch.uint8}
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)


def test_weights_that_are_shared_out_are_refused(sft, folder):
    trainer = sft(nf4(folder), peft_config=lora_config(4))
    trainer._check_base()
    trainer.is_fsdp_enabled = True
    with pytest.raises(ConfigError, match="a 4-bit base cannot be sharded over processes"):
        trainer._check_base()


def test_a_base_that_is_quantised_already_is_refused(folder, tmp_path):
    nf4(folder).save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="is already quantised: set `quantization` to none"):
        nf4(tmp_path / "small")
    assert is_quantized(load_model(str(tmp_path / "small")))


def test_without_bitsandbytes(monkeypatch, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes: pip install bitsandbytes"):
        load_model(str(tmp_path), quantization="nf4")
