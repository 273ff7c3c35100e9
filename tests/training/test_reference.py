"""The reference's log-probabilities: a slow twin, the cache on disk, and what its key depends on."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.scorer import ChoiceScorer
from prefrec.prompts import ChoiceSet
from prefrec.training import reference
from prefrec.training.adapters import add_reference_adapter
from prefrec.training.reference import reference_key, reference_logps
from slow import slow_logps
from tiny_training import adapted_model, small_model

SETS = [ChoiceSet((3, 4), ((5, 9), (6, 7, 9))), ChoiceSet((3, 4, 8, 8), ((5, 9), (6, 9), (7, 9)))]
SETS += [ChoiceSet((2,), ((6, 7, 9),))]
"""Three, two and one answer: rows of a batch, and batches, differ in their number of answers."""


@pytest.fixture
def ask(tmp_path):
    """Asks for the log-probabilities of `SETS`, as the first of all trainings that share the folder `cache`."""

    def logps(model=None, precision=nullcontext, share=False):
        scorer = ChoiceScorer(model or adapted_model(), 0, share=share)
        return reference_logps(scorer, SETS, batch_size=2, precision=precision, folder=tmp_path / "runs" / "cache")

    return logps


@pytest.fixture
def cached(tmp_path, ask):
    """The one file that a training has left."""
    ask()
    (file,) = (tmp_path / "runs" / "cache").iterdir()
    return file


@pytest.fixture
def computed(monkeypatch):
    """The rows of each batch that is computed."""
    batches, score = [], ChoiceScorer.score

    def counted(self, sets, model=None):
        batches.append([SETS.index(s) for s in sets])
        return score(self, sets, model)

    monkeypatch.setattr(ChoiceScorer, "score", counted)
    return batches


def _is_right(logps, model):
    assert logps.dtype == np.float32
    assert logps.shape == (3, 3)
    for row, choices in zip(logps, SETS, strict=True):
        count = len(choices.answers)
        assert row[:count] == pytest.approx(slow_logps(model, choices).detach().numpy(), abs=1e-4)
        assert np.isneginf(row[count:]).all()


def test_the_base_is_the_reference_of_an_adapter(ask):
    _is_right(ask(), small_model())


@torch.no_grad()
def _moved(model, part):
    """The model, with one added to the weights whose names have this part."""
    for name, p in model.named_parameters():
        if part in name:
            p.add_(1)
    return model


def _with_reference():
    model = adapted_model()
    add_reference_adapter(model)
    return model


def test_the_adapter_ref_is_the_reference_where_there_is_one(ask):
    _is_right(ask(_moved(_with_reference(), "lora_B.default")), adapted_model().merge_and_unload())


def test_batches_are_of_the_size_and_the_longest_row_comes_first(ask, computed, monkeypatch):
    shown = []
    monkeypatch.setattr(reference, "track", lambda batches, doing: shown.append(doing) or batches)
    ask()
    assert computed == [[1, 0], [2]]
    assert shown == ["reference log-probs"]


def test_rows_that_may_share_their_prompts_stay_in_order(ask, computed):
    ask(share=True)
    assert computed == [[0, 1], [2]]


def test_each_batch_is_computed_in_the_precision(ask, computed):
    inside = []

    @contextmanager
    def precision():
        inside.append(len(computed))
        yield

    ask(precision=precision)
    assert inside == [0, 0, 1]  # for the key, and for each of the batches


def test_autocast_is_another_precision(ask, tmp_path):
    exact, rounded = ask(), ask(precision=lambda: torch.autocast("cpu", torch.bfloat16))
    assert len(list((tmp_path / "runs" / "cache").iterdir())) == 2
    assert np.array_equal(np.isinf(exact), np.isinf(rounded))
    assert not np.array_equal(exact, rounded)


def test_a_second_training_computes_nothing(ask, cached, computed):
    before = load_file(cached)["ref_logps"]
    assert np.array_equal(ask(), before)
    assert not computed


def test_the_file_says_what_it_is(cached):
    key = reference_key(ChoiceScorer(adapted_model(), 0), SETS, nullcontext)
    assert cached.name == f"reference-{key[:16]}.safetensors"
    assert len(key) == 64
    with safe_open(cached, framework="numpy") as f:
        assert f.metadata()["key"] == key


@contextmanager
def _rewritten(file):
    """The arrays and the metadata of a cache file, to be changed."""
    with safe_open(file, framework="numpy") as f:
        arrays, metadata = {"ref_logps": f.get_tensor("ref_logps").copy()}, dict(f.metadata())
    yield arrays, metadata
    save_file(arrays, file, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("value", "is damaged and will be computed again"),
        ("digest", "cannot be read and will be computed again: 'digest'"),
        ("name", "cannot be read and will be computed again: "),
    ],
)
def test_a_damaged_file_is_told_and_computed_again(ask, cached, computed, capsys, damage, message):
    whole = load_file(cached)["ref_logps"]
    with _rewritten(cached) as (arrays, metadata):
        if damage == "value":
            arrays["ref_logps"][0, 0] += 1
        elif damage == "digest":
            del metadata["digest"]
        else:
            arrays["logps"] = arrays.pop("ref_logps")
    assert np.array_equal(ask(), whole)
    assert f"{cached} {message}" in capsys.readouterr().err
    assert np.array_equal(load_file(cached)["ref_logps"], whole)
    assert computed == [[1, 0], [2]]


def test_a_cut_file_is_told_and_computed_again(ask, cached, capsys):
    whole = load_file(cached)["ref_logps"]
    cached.write_bytes(cached.read_bytes()[:-5])
    assert np.array_equal(ask(), whole)
    assert f"{cached} cannot be read and will be computed again" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["0" * 64, None])
def test_values_of_another_key_are_computed_again(ask, cached, computed, capsys, key):
    whole = load_file(cached)["ref_logps"]
    with _rewritten(cached) as (arrays, metadata):
        arrays["ref_logps"][:] = 0
        metadata["digest"] = reference.xxh3_128_hexdigest(arrays["ref_logps"].tobytes())
        del metadata["key"]
        metadata |= {"key": key} if key else {}
    assert np.array_equal(ask(), whole)
    assert not capsys.readouterr().err.count("warning")


def test_other_processes_leave_the_file_to_the_first(ask, monkeypatch, tmp_path):
    monkeypatch.setattr(reference.processes, "is_first", lambda: False)
    monkeypatch.setattr(reference.processes, "from_first", lambda value: value)
    for of_the_first in ("reference_key", "_read"):
        monkeypatch.setattr(reference, of_the_first, None)
    _is_right(ask(), small_model())
    assert not (tmp_path / "runs").exists()


def test_the_first_process_pools_the_rows_of_all(ask, monkeypatch):
    monkeypatch.setattr(reference.processes, "from_first", lambda value: value)
    monkeypatch.setattr(reference.processes, "pool", lambda items: [*items, ([0], np.full((1, 3), 7.0))])
    assert ask()[0].tolist() == [7, 7, 7]


def key_of(model=None, sets=SETS, precision=nullcontext, **settings):
    return reference_key(ChoiceScorer(model or adapted_model(), 0, **settings), sets, precision)


def test_the_key_has_the_precision_the_layout_and_the_catalogue():
    other = ((5, 9), (6, 7, 9), (6, 9), (7, 9))
    tree = ((5, 9), (5, 7, 9), (6, 9), (7, 9))
    keys = [key_of(precision=lambda: torch.autocast("cpu", torch.bfloat16)), key_of(layout="separate"), key_of()]
    keys += [key_of(within=CatalogueSoftmax(titles)) for titles in (other, tree)]
    keys.append(key_of(adapted_model().to(torch.bfloat16)))
    assert len(set(keys)) == len(keys)
    assert key_of(within=CatalogueSoftmax(other)) == keys[3]


def test_catalogues_that_differ_only_in_their_paths_have_other_keys():
    first, second = CatalogueSoftmax(((5, 6), (7, 6))), CatalogueSoftmax(((5, 6), (7, 6)))
    second.trie.parents[-1] = second.trie.parents[-2]
    assert np.array_equal(first.trie.tokens, second.trie.tokens)
    assert key_of(within=first) != key_of(within=second)


def test_the_key_has_the_reference_and_not_the_policy():
    assert key_of(_moved(_with_reference(), "lora_B.default")) == key_of(_with_reference())
    assert key_of(_moved(_with_reference(), "lora_B.ref")) != key_of(_with_reference())
    assert key_of(_moved(_with_reference(), "embed_tokens")) != key_of(_with_reference())
    assert key_of(_moved(adapted_model(), "lora_")) == key_of()
    assert key_of(_with_reference()) != key_of()


def test_the_key_has_the_scaling_of_the_reference():
    model = _with_reference()
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.scaling["default"] *= 2
    assert key_of(model) == key_of(_with_reference())
    for layer in layers:
        layer.scaling["ref"] *= 2
    assert key_of(model) != key_of(_with_reference())


@pytest.mark.parametrize("change", [lambda w: w.reshape(-1, 2), lambda w: w.view(torch.int32)])
def test_the_same_bytes_in_another_shape_or_type_have_another_key(change):
    model = small_model()
    model.model.norm.weight = torch.nn.Parameter(change(model.model.norm.weight.detach()), requires_grad=False)
    assert key_of(model) != key_of(small_model())


def test_the_key_does_not_depend_on_the_order_of_the_configuration(monkeypatch):
    model = small_model()
    core, shown = type(model.config), model.config.to_diff_dict()
    expected = key_of(model)
    monkeypatch.setattr(core, "to_diff_dict", lambda self: dict(reversed(shown.items())))
    assert key_of(model) == expected
    monkeypatch.setattr(core, "to_diff_dict", lambda self: shown | {"own": object})
    assert key_of(model) != expected


def test_the_key_of_the_reference_has_weights_configuration_and_tokens():
    sets = [ChoiceSet((3, 4), ((5,), (6, 7)))]
    one_weight, configuration = adapted_model(), adapted_model()
    with torch.no_grad():
        one_weight.get_input_embeddings().weight[1, 1] += 1
    configuration.config.rms_norm_eps = 0.5
    tokens = [((3, 4), ((5,), (6, 8))), ((3, 8), ((5,), (6, 7))), ((3, 4), ((5, 6), (7,))), ((3,), ((4, 5), (6, 7)))]
    keys = {key_of(sets=[ChoiceSet(*of)]) for of in tokens}
    keys |= {key_of(model, sets) for model in (adapted_model(), one_weight, configuration)}
    assert key_of(sets=sets) == key_of(sets=sets)
    assert len(keys) == 3 + len(tokens)


def test_files_of_shared_rows_that_flex_attention_read_wrongly_are_not_found(monkeypatch):
    """The key once had nothing but the name of the kernel."""
    model, hashed, sha256 = adapted_model(), [], reference.hashlib.sha256
    model.get_base_model().set_attn_implementation("flex_attention")
    monkeypatch.setattr(reference.hashlib, "sha256", lambda data: hashed.append(data) or sha256(data))
    key_of(model, layout="packed")
    assert b"'flex_attention, own rows'" in hashed[0]
    assert b"'flex_attention'" not in hashed[0]


def test_the_key_of_the_reference_has_how_it_is_computed():
    def key(attention=None):
        model = adapted_model()
        if attention:
            model.get_base_model().set_attn_implementation(attention)
        return key_of(model, [ChoiceSet((3, 4), ((5,), (6, 7)))], layout="packed")

    keys = {key(), key("eager"), key("flex_attention")}
    assert len(keys) == 3
    assert key("sdpa") in keys
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high"):
            torch.set_float32_matmul_precision(precision)
            keys.add(key())
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(keys) == 5
