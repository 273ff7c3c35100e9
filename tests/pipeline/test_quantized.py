"""A recipe on a base in 4 bits, from SFT to the table."""

import json

import torch

from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from quantized import skip_where_it_does_not_run
from tiny_run import adapter_weights


def test_a_run_on_a_base_in_4_bits(recipe, tmp_path):
    skip_where_it_does_not_run()
    raw = recipe.model_dump(mode="json")
    raw["model"]["quantization"] = "nf4"
    raw["align"] = raw["align"][1:]
    run_recipe(Recipe.model_validate(raw), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["metrics"]
    assert {"zero-shot", "sft", "s-dpo"} <= metrics.keys()
    weights = adapter_weights(tmp_path / "align" / "s-dpo" / "adapter")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert all("lora_" in name for name in weights)
