"""prefrec.training.adapters: what lies in an adapter's folder is looked at before PEFT reads it."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from prefrec.errors import ModelError
from prefrec.rankers.lm import load_lm
from prefrec.training.adapters import load_adapter
from served_run import write_run
from tiny import tiny_llama
from tiny_training import adapted_model


@pytest.fixture
def folder(tmp_path):
    adapted_model().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class Pickled:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def _change(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_sound_adapter_is_read(folder):
    assert isinstance(load_adapter(tiny_llama(), folder), PeftModel)


@pytest.mark.parametrize("write", [lambda x, p: p.write_bytes(pickle.dumps(x)), torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_pickle_is_never_opened(folder, tmp_path, write, trainable):
    mark = tmp_path / "mark"
    write(Pickled(mark), folder / "adapter_model.bin")
    load_adapter(tiny_llama(), folder, is_trainable=trainable)  # the safetensors beside it are taken
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors; adapters in other formats are not read"):
        load_adapter(tiny_llama(), folder, is_trainable=trainable)
    assert not mark.exists()


def test_a_pickle_under_the_name_of_safetensors(folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Pickled(mark)))
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(tiny_llama(), folder)
    assert not mark.exists()


def test_no_module_is_imported_for_a_configuration(folder, tmp_path, monkeypatch):
    (tmp_path / "evil_core.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    _change(folder, megatron_config={"any": 1}, megatron_core="evil_core")
    with pytest.raises(ModelError, match="names a module to import"):
        load_adapter(tiny_llama(), folder)
    assert "evil_core" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: adapter_config.json"),
        ("[]", "no LoRA adapter's"),
        ('{"peft_type": "PROMPT_TUNING"}', "no LoRA adapter's"),
        ("{}", "no LoRA adapter's"),
    ],
)
def test_configurations_that_are_none(folder, text, message):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load_adapter(tiny_llama(), folder)


def test_the_same_holds_wherever_a_model_is_loaded(tmp_path, bpe_tokenizer):
    run = write_run(tmp_path, bpe_tokenizer)
    (run / "sft" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_lm(str(tmp_path / "model"), run / "sft" / "adapter", dtype="float32")
