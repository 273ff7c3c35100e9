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

SETS = [
    ChoiceSet((3, 4), ((5, 9), (6, 7, 9))),
    ChoiceSet((3, 4, 8, 8), ((5, 9), (6, 9), (7, 9))),
    ChoiceSet((2,), ((6, 7, 9),)),
]
"""Three, two and one answer: rows of a batch, and batches, differ in their number of answers."""


@pytest.fixture
def ask(tmp_path):
    """Asks for the log-probabilities of `SETS`, as the first of all trainings that share the folder `cache`."""

    def logps(model=None, sets=SETS, precision=nullcontext, batch_size=2, share=False):
        scorer = ChoiceScorer(model or adapted_model(), 0, share=share)
        folder = tmp_path / "runs" / "cache"
        return reference_logps(scorer, sets, batch_size=batch_size, precision=precision, folder=folder)

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
    batches = []
    score = ChoiceScorer.score

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


def test_the_adapter_ref_is_the_reference_where_there_is_one(ask):
    model, before = adapted_model(), adapted_model().merge_and_unload()
    add_reference_adapter(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B.default" in name:
                p.add_(1)
    _is_right(ask(model), before)


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
    exact = ask()
    rounded = ask(precision=lambda: torch.autocast("cpu", torch.bfloat16))
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


def _rewrite(file, change):
    """Change the values and the metadata of a cache file."""
    with safe_open(file, framework="numpy") as f:
        values, metadata = f.get_tensor("ref_logps").copy(), dict(f.metadata())
    name = change(values, metadata) or "ref_logps"
    save_file({name: values}, file, metadata=metadata)


def _flip(values, metadata):
    values[0, 0] += 1


def _no_digest(values, metadata):
    del metadata["digest"]


def _other_name(values, metadata):
    return "logps"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, "is damaged and will be computed again"),
        (_no_digest, "cannot be read and will be computed again: 'digest'"),
        (_other_name, "cannot be read and will be computed again: "),
    ],
)
def test_a_damaged_file_is_told_and_computed_again(ask, cached, computed, capsys, change, message):
    whole = load_file(cached)["ref_logps"]
    _rewrite(cached, change)
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

    def other(values, metadata):
        values[:] = 0
        metadata["digest"] = reference.xxh3_128_hexdigest(values.tobytes())
        del metadata["key"]
        metadata |= {"key": key} if key else {}

    _rewrite(cached, other)
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
    keys = [
        key_of(),
        key_of(precision=lambda: torch.autocast("cpu", torch.bfloat16)),
        key_of(layout="separate"),
        key_of(within=CatalogueSoftmax(other)),
        key_of(within=CatalogueSoftmax(tree)),
        key_of(adapted_model().to(torch.bfloat16)),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(within=CatalogueSoftmax(other)) == keys[3]


def test_catalogues_that_differ_only_in_their_paths_have_other_keys():
    first, second = CatalogueSoftmax(((5, 6), (7, 6))), CatalogueSoftmax(((5, 6), (7, 6)))
    second.trie.parents[-1] = second.trie.parents[-2]
    assert np.array_equal(first.trie.tokens, second.trie.tokens)
    assert key_of(within=first) != key_of(within=second)


def _with_reference(change=None):
    model = adapted_model()
    add_reference_adapter(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if change and change in name:
                p.add_(1)
    return model


def test_the_key_has_the_reference_and_not_the_policy():
    assert key_of(_with_reference("lora_B.default")) == key_of(_with_reference())
    assert key_of(_with_reference("lora_B.ref")) != key_of(_with_reference())
    assert key_of(_with_reference("embed_tokens")) != key_of(_with_reference())
    moved = adapted_model()
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if "lora_" in name:
                p.add_(1)
    assert key_of(moved) == key_of()
    assert key_of(_with_reference()) != key_of()


def test_the_key_has_the_scaling_of_the_reference():
    model = _with_reference()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 2
    assert key_of(model) == key_of(_with_reference())
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["ref"] *= 2
    assert key_of(model) != key_of(_with_reference())


@pytest.mark.parametrize("change", [lambda w: w.reshape(-1, 2), lambda w: w.view(torch.int32)])
def test_the_same_bytes_in_another_shape_or_type_have_another_key(change):
    model = small_model()
    model.model.norm.weight = torch.nn.Parameter(change(model.model.norm.weight.detach()), requires_grad=False)
    assert key_of(model) != key_of(small_model())


def test_the_key_does_not_depend_on_the_order_of_the_configuration(monkeypatch):
    model = small_model()
    core = type(model.config)
    shown = model.config.to_diff_dict()
    expected = key_of(model)
    monkeypatch.setattr(core, "to_diff_dict", lambda self: dict(reversed(shown.items())))
    assert key_of(model) == expected
    monkeypatch.setattr(core, "to_diff_dict", lambda self: shown | {"own": object})
    assert key_of(model) != expected


def test_the_key_of_the_reference_has_weights_configuration_and_tokens():
    sets = [ChoiceSet((3, 4), ((5,), (6, 7)))]

    def key(change=None, sets=sets):
        model = adapted_model()
        if change:
            change(model)
        return reference_key(ChoiceScorer(model, 0), sets, nullcontext)

    def one_weight(model):
        with torch.no_grad():
            model.get_input_embeddings().weight[1, 1] += 1

    def configuration(model):
        model.config.rms_norm_eps = 0.5

    tokens = [((3, 4), ((5,), (6, 8))), ((3, 8), ((5,), (6, 7))), ((3, 4), ((5, 6), (7,))), ((3,), ((4, 5), (6, 7)))]
    keys = {key(sets=[ChoiceSet(*of)]) for of in tokens} | {key(), key(one_weight), key(configuration)}
    assert key() == key()
    assert len(keys) == 3 + len(tokens)


def test_the_key_of_the_reference_has_how_it_is_computed():
    sets = [ChoiceSet((3, 4), ((5,), (6, 7)))]

    def key(model=None):
        model = model or adapted_model()
        return reference_key(ChoiceScorer(model, 0, layout="packed"), sets, nullcontext)

    def attending(implementation):
        model = adapted_model()
        model.get_base_model().set_attn_implementation(implementation)
        return model

    keys = {key(), key(attending("eager")), key(attending("flex_attention"))}
    assert len(keys) == 3
    assert key(attending("sdpa")) in keys
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("medium", "high"):
            torch.set_float32_matmul_precision(precision)
            keys.add(key())
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(keys) == 5
