"""scripts/head_alignment.py: objectives by loops, hidden states by the model's own scores."""

import importlib.util
import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from prefrec.lm.items import next_item_logps
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, load_recipe
from prefrec.stages.encoders import prompt_encoder
from prefrec.training.weights import load_weights

SCRIPT = Path(__file__).parents[1] / "scripts" / "head_alignment.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("head_alignment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "dropout": 0.1}}
    raw |= {"align": [], "lora": None, "sft": raw["sft"] | {"titles": 5, "rows": None}}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0}
    folder = tmp_path_factory.mktemp("head") / "run"
    run_recipe(Recipe.model_validate(raw), folder, until="sft")
    return folder


@pytest.fixture(scope="module")
def cached(script, run):
    return script.Cached(run)


LOGITS = torch.tensor([[0.2, -0.4, 1.1, 0.0, -torch.inf], [2.0, 0.5, -1.0, 0.7, 0.1]])
TARGETS = torch.tensor([0, 3])


def _rows(*more):
    """Logits, target and what else there is, row by row."""
    return zip(LOGITS.tolist(), TARGETS.tolist(), *more, strict=True)


def test_bear_equals_its_formula(script):
    losses = script.bear(LOGITS, TARGETS, k=2, weight=3.0, width=0.5)
    for row, target, loss in _rows(losses.tolist()):
        logps = [x - math.log(sum(map(math.exp, row))) for x in row]
        gap = logps[target] - sorted(logps)[-2]
        assert loss == pytest.approx(-logps[target] * (1 + 3 / (1 + math.exp(-gap / 0.5))), abs=1e-5)


def test_expected_dcg_sums_over_all_orders(script):
    losses = script.expected_dcg(LOGITS, TARGETS, softmax=0.5, top=3)
    for row, target, loss in _rows(losses.tolist()):
        others = sorted(row[:target] + row[target + 1 :])[-3:]
        wins = [1 / (1 + math.exp(row[target] - x)) for x in others]
        dcg = 0.0
        for above in product([0, 1], repeat=3):
            chance = math.prod(p if a else 1 - p for a, p in zip(above, wins, strict=True))
            dcg += chance / math.log2(2 + sum(above))
        own = row[target] - math.log(sum(map(math.exp, row)))
        assert loss == pytest.approx(-0.5 * own - dcg, abs=1e-5)


def test_sdpo_is_against_the_best_that_the_user_never_takes(script):
    reference, taken = torch.zeros(2, 5), torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    losses = script.own_top_sdpo(LOGITS, reference, TARGETS, taken, beta=0.5, top=2)
    for row, target, rejected, loss in _rows(((3, 1), (0, 1)), losses.tolist()):
        gaps = [0.5 * (row[i] - row[target]) for i in rejected]
        assert loss == pytest.approx(math.log(1 + sum(map(math.exp, gaps))), abs=1e-5)


def test_cached_states_give_the_model_s_own_scores(script, run, cached):
    data, recipe = cached.data, load_recipe(run / "recipe.yaml")
    encoder = prompt_encoder(recipe.model, data.catalogue)
    model = load_weights(recipe.model.name, run / "sft" / script.WEIGHTS, dtype="float32").eval()
    titles = [data.catalogue.titles_of(e.history) for e in data.test]
    tokens = [[encoder.begin, *(t for t, _ in encoder.answers_after("", own))] for own in titles]
    first = len(model.get_input_embeddings().weight) + int(cached.places.sequences[0][0])
    for hidden, sequences in ((cached.test.hidden, tokens), (cached.places.hidden[:1], [[encoder.begin, first]])):
        with torch.no_grad():
            got = cached.head(hidden).log_softmax(dim=1)
        torch.testing.assert_close(got, next_item_logps(model, sequences), rtol=0, atol=1e-4)
