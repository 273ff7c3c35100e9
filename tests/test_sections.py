"""One default a setting: what a recipe leaves out is what Python's arguments leave out."""

from dataclasses import fields
from inspect import Parameter, signature

import pytest
from pydantic import ValidationError

from prefrec.lm.items import load_item_model
from prefrec.lm.models import load_model
from prefrec.rankers import LMRanker
from prefrec.sections import (
    AlignSection,
    EvaluateSection,
    ItemsSection,
    LoraSection,
    ModelSection,
    SFTSection,
)
from prefrec.training import SFTConfig, SoftmaxDPOConfig, lora_config

ARGUMENTS = {
    "epochs": "num_train_epochs",
    "per_device_batch_size": "per_device_train_batch_size",
    "warmup": "warmup_steps",
    "loss": "loss_type",
    "precompute_reference": "precompute_ref_log_probs",
}
"""Field of a section → argument of a trainer, where their names differ."""
OTHERS = {
    "global_batch_size": "the accumulation steps of transformers decide, if it is left out",
    "num_negatives": "rows from Python have as many as they have",
    "eval_steps": "as in transformers, which does not evaluate by default",
    "save_steps": "as in transformers, whose checkpoints nobody removes here",
    "metric_for_best_model": "NDCG is of `KeepBest`, which a recipe adds",
}
"""Settings whose defaults differ, and why."""


def defaults(function) -> dict:
    return {p.name: p.default for p in signature(function).parameters.values() if p.default is not Parameter.empty}


def assert_same(section: dict, arguments: dict, names=()) -> None:
    """Compare every field that both have, at least `names`; None and False are both off."""
    shared = {name: ARGUMENTS.get(name, name) for name in section if ARGUMENTS.get(name, name) in arguments}
    assert set(names) <= set(shared)
    compared = {n: (section[n] or None, arguments[a] or None) for n, a in shared.items() if n not in OTHERS}
    assert {n: pair for n, pair in compared.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize(("section", "config"), [(SFTSection, SFTConfig), (AlignSection, SoftmaxDPOConfig)])
def test_training(section, config):
    arguments = {field.name: field.default for field in fields(config)}
    assert_same(section().model_dump(), arguments, ("epochs", "learning_rate", "per_device_batch_size", "warmup"))


def test_the_rates_of_item_vectors():
    assert SFTConfig.item_learning_rate == ItemsSection().learning_rate
    assert SoftmaxDPOConfig.item_learning_rate is AlignSection().item_learning_rate is None  # that of the layers


def test_loading_and_asking():
    section = ModelSection().model_dump()
    loading = ("dtype", "attn_implementation", "quantization", "layers", "random_weights")
    assert_same(section, defaults(load_model), loading)
    assert_same(section, defaults(load_item_model), ("dtype",))
    asked = section | EvaluateSection().model_dump(include={"batch_size"})
    assert_same(asked, defaults(LMRanker), ("objective", "max_length", "chat", "batch_size"))
    assert_same(LoraSection().model_dump(), defaults(lora_config), ("r", "alpha", "dropout", "targets"))


def test_random_weights_are_not_quantised():
    with pytest.raises(ValidationError, match=r"quantization: nf4 stores .* or random_weights to false"):
        ModelSection(random_weights=True, quantization="nf4")
