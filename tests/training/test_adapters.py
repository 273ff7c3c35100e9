"""prefrec.training.adapters: what lies in an adapter's folder is looked at before PEFT reads it."""

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from prefrec.errors import ConfigError, ModelError
from prefrec.lm.models import load_model
from prefrec.lm.names import EMBEDDED_HUB_ID, canonical_name
from prefrec.rankers.lm import load_lm
from prefrec.training.adapters import add_adapter, add_reference_adapter, load_adapter, lora_config, reference_of
from tiny import tiny_llama
from tiny_run import write_model
from tiny_training import adapted_model


@pytest.fixture
def folder(tmp_path):
    adapted_model().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class Pickled(str):
    """Writes the file of this name when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path(str(self)),)


def _refuse(folder, message, base=None, **how) -> str:
    with pytest.raises(ModelError, match=message) as refused:
        load_adapter(base or tiny_llama(), folder, **how)
    return str(refused.value)


def _change(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("write", [lambda x, p: p.write_bytes(pickle.dumps(x)), torch.save], ids=["pickle", "torch"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_pickle_is_never_opened(folder, tmp_path, write, trainable):
    mark = tmp_path / "mark"
    write(Pickled(mark), folder / "adapter_model.bin")
    load_adapter(tiny_llama(), str(folder), is_trainable=trainable)  # the safetensors beside it are taken
    (folder / "adapter_model.safetensors").unlink()
    _refuse(folder, r"no adapter_model\.safetensors; other formats are not supported", is_trainable=trainable)
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    _refuse(folder, "cannot be read", is_trainable=trainable)
    assert not mark.exists()


def test_no_module_is_imported_for_a_configuration(folder, tmp_path, monkeypatch):
    (tmp_path / "evil_core.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    _change(folder, megatron_config={"any": 1}, megatron_core="evil_core")
    _refuse(folder, r"has megatron_config: .*; use a plain LoRA adapter")
    assert "evil_core" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: adapter_config.json"),
        ("[]", "not that of a LoRA adapter"),
        ('{"peft_type": "PROMPT_TUNING"}', "not that of a LoRA adapter"),
        ("[" * 10**5, "adapter_config.json: maximum recursion"),
        (" " * (1 << 21), "longer than 1048576 bytes"),
    ],
)
def test_configurations_that_are_none(folder, text, message):
    (folder / "adapter_config.json").write_text(text)
    _refuse(folder, message)


HARMFUL = [
    {"target_modules": "(.*)*(.*)*(.*)*(.*)*!"}, {"target_modules": ["q_proj", "(.*)*!"]}, {"lora_alpha": None},
    {"rank_pattern": {"(.*)*!": 4}}, {"modules_to_save": ["lm_head"]}, {"r": 10**9}, {"task_type": "SEQ_CLS"},
    {"some_later_setting": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("changes", HARMFUL, ids=str)
def test_settings_that_are_not_known_to_be_harmless_are_refused(folder, changes, monkeypatch):
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *a, **k: pytest.fail("PEFT reads it"))
    _change(folder, **changes)
    assert "\n" not in _refuse(folder, r"adapter_config\.json has \w+: .*; use a plain LoRA")


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_settings_of_later_versions_that_are_off_are_no_matter(folder):
    _change(folder, some_later_setting=None, another={}, third=False)
    assert isinstance(load_adapter(tiny_llama(), folder), PeftModel)


def test_an_adapter_on_layers_by_expression_is_saved_with_their_names(tmp_path):
    add_adapter(tiny_llama(), lora_config(r=2, targets=r".*\.1\..*(q|v)_proj")).save_pretrained(tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert sorted(named) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    again = {n for n, _ in load_adapter(tiny_llama(), tmp_path).named_parameters() if ".lora_A." in n}
    assert len(again) == 2


def test_the_same_holds_wherever_a_model_is_loaded(folder, tmp_path, bpe_tokenizer):
    model = write_model(tmp_path / "model", bpe_tokenizer)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_lm(str(model), folder, dtype="float32")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("smollm2-135m", "/home/ann/.cache/prefrec/models/smollm2-135m-98765", True),
        ("smollm2-135m", EMBEDDED_HUB_ID, True),
        ("a/m", "/cache/hub/models--a--m/snapshots/0f3c", True),
        ("/moved/from/m", "/moved/to/m", False),
        ("a/m", "a/n", False),
    ],
)
def test_names_of_one_base(one, other, same):
    assert (canonical_name(one) == canonical_name(other)) == same


@pytest.fixture
def bases(folder, tmp_path):
    """Two saved models of one shape, of which the first is the adapter's, and one of another."""
    for seed, name in enumerate(("first", "second")):
        tiny_llama(seed=seed).save_pretrained(tmp_path / name)
    tiny_llama(hidden_size=32, intermediate_size=48).save_pretrained(tmp_path / "narrow")
    (tmp_path / "link").symlink_to(tmp_path / "first")
    _change(folder, base_model_name_or_path=str(tmp_path / "first"))
    return tmp_path


def test_an_adapter_of_another_base_is_told(folder, bases, capsys):
    for same in ("first", "link"):
        load_adapter(load_model(str(bases / same)), folder)
    load_adapter(tiny_llama(), folder)  # a model without a name
    assert "warning" not in capsys.readouterr().err
    load_adapter(load_model(str(bases / "second")), folder)
    told = f"was trained on {bases}/first, but is loaded on {bases}/second: unless these are copies"
    assert told in capsys.readouterr().err


def test_an_adapter_of_another_shape_is_told_in_a_line(folder, bases):
    says = f"the adapter in {folder} cannot be read, or belongs to another base model (trained on {bases}/"
    told = _refuse(folder, f"^{re.escape(says)}", load_model(str(bases / "narrow")))
    assert f"loaded on {bases}/narrow): " in told
    assert "size mismatch for " in told
    assert "\n" not in told
    assert len(told) < 700  # a few lines of a terminal; it names three folders of the test


def _adapted(targets) -> set[str]:
    names = [n for n, _ in add_adapter(tiny_llama(), lora_config(r=2, targets=targets)).named_parameters()]
    return {n.partition(".lora_")[0].rpartition(".")[2] for n in names if ".lora_" in n}


def test_layers_by_name_and_by_expression():
    assert _adapted("q_proj") == _adapted(["q_proj"]) == _adapted("self_attn.q_proj") == {"q_proj"}
    assert _adapted(r".*\.(q|v)_proj") == {"q_proj", "v_proj"}
    assert len(_adapted("all-linear")) == 7


@pytest.mark.parametrize("targets", [["query"], "q_proj,k_proj", "[", []])
def test_layers_that_there_are_not(targets):
    message = r"lora\.targets: .*name some of the model's linear layers \(q_proj, k_proj, .*all-lin"
    with pytest.raises(ConfigError, match=message):
        _adapted(targets)


def test_a_configuration_may_be_given_to_several_models():
    config = lora_config(r=2, targets=r".*\.q_proj")
    for layers in (1, 3):
        model = add_adapter(tiny_llama(num_hidden_layers=layers), config)
        assert sum("lora_A" in name for name, _ in model.named_parameters()) == layers


def test_what_is_wrong_beside_the_layers_is_told_by_peft():
    with pytest.raises(ConfigError, match="peft_config: `r` should be a positive integer value but"):
        add_adapter(tiny_llama(), lora_config(r=0))
    with pytest.raises(ConfigError, match="peft_config: PROMPT_TUNING adds tokens to the prompt; use LoRA or IA3"):
        add_adapter(tiny_llama(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("alpha", [0, -1])
def test_the_scale_is_positive(alpha):
    assert lora_config(r=3).lora_alpha == 6
    with pytest.raises(ConfigError, match=f"lora.alpha must be positive, got {alpha}"):
        lora_config(r=3, alpha=alpha)


def test_a_copy_of_an_adapter_leaves_the_base_as_it_is():
    """PiSSA takes the adapter's product off the base's weights when it is initialised."""
    config = LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_llama(), config).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = model(tokens).logits
        add_reference_adapter(model)
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)
        with reference_of(model):
            torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-6)


def test_one_of_the_layers_is_not_there(capsys):
    assert _adapted(["q_proj", "query"]) == {"q_proj"}
    assert "warning: lora.targets: the model has no layer query" in capsys.readouterr().err
