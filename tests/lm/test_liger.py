"""prefrec.lm.liger: who is asked, and with what. The kernels need a GPU."""

import sys
from types import ModuleType

import pytest
import torch
from peft import get_peft_model

from prefrec.lm.liger import use_liger
from prefrec.lm.models import hold_weights
from prefrec.training import SFTConfig, SFTTrainer, lora_config
from tiny import bpe_tokenizer, tiny_llama

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def patched(monkeypatch):
    """A package in Liger's place; a list that grows by each model and options that it is given."""
    calls, package = [], ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = lambda model, **options: calls.append((model, options))
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    for module in ("transformers.integrations.liger", "transformers.utils"):
        monkeypatch.setattr(f"{module}.is_liger_kernel_available", lambda: True)
    return calls


@pytest.mark.parametrize("adapted", [False, True])
def test_the_base_gets_all_kernels_but_the_losses(patched, adapted):
    base = tiny_llama()
    use_liger(get_peft_model(base, lora_config()) if adapted else base, CUDA)
    assert patched == [(base, {"cross_entropy": False, "fused_linear_cross_entropy": False})]


def test_rankers_and_trainers_ask_for_their_device(monkeypatch, tmp_path):
    asked = []
    for place in ("prefrec.lm.models", "prefrec.training.base"):
        monkeypatch.setattr(f"{place}.use_liger", lambda model, device: asked.append((model, device.type)))
    model = hold_weights(tiny_llama())
    rows = [{"prompt": "a b", "completion": " c"}]
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True)
    SFTTrainer(model, args=args, train_dataset=rows, processing_class=bpe_tokenizer())
    assert asked == [(model, "cpu")] * 2
