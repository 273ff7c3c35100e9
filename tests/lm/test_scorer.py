"""prefrec.lm.scorer: one place that chooses the layout, packs and scores."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from prefrec.lm.scorer import ChoiceScorer
from prefrec.prompts import ChoiceSet
from slow import slow_logps
from tiny import broken, tiny_llama

SETS = [
    ChoiceSet((5, 6), ((7, 1), (8, 9, 1))),
    ChoiceSet(tuple(range(3, 40)), ((7, 1), (8, 9, 1), (10, 1))),
    ChoiceSet((5, 6, 9), ((11, 1),)),
]


@pytest.mark.parametrize("layout", ["auto", "separate"])
@pytest.mark.parametrize("max_tokens", [None, 30])
def test_scores_equal_the_slow_twin_in_the_given_order(layout, max_tokens):
    model = tiny_llama()
    got = ChoiceScorer(model, 0, layout=layout, max_tokens=max_tokens).score(SETS)
    assert not got.requires_grad
    with torch.no_grad():
        want = pad_sequence([slow_logps(model, choices) for choices in SETS], True, -np.inf)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_in_16_bits_a_score_depends_on_its_question_alone(layout):
    """Whatever shares the call: kernels add in an order that depends on its shape."""
    rng = np.random.default_rng(0)
    sets = [ChoiceSet(tuple(rng.integers(3, 300, n)), ((7, 1), (8, 9, 1), (10, 11, 12, 1))) for n in range(5, 60, 5)]
    scorer = ChoiceScorer(tiny_llama().bfloat16(), 0, layout=layout)
    together = scorer.score(sets)
    assert torch.equal(together, torch.cat([scorer.score([s]) for s in sets]))
    assert torch.equal(together[:4], scorer.score(sets[:4]))


def test_the_layout_is_checked_once_and_its_fall_is_told(capsys):
    scorer = ChoiceScorer(broken(tiny_llama()), 0, name="sft")
    assert scorer.layout == "packed"
    for _ in range(2):
        scorer.check_layout(SETS)
    assert scorer.layout == "separate"
    assert capsys.readouterr().err.count("sft: scoring one sequence per answer, which is slower") == 1


@pytest.mark.parametrize(("model_type", "layout"), [("llama", "packed"), ("novel", "separate")])
def test_sharded_weights_are_not_tried(model_type, layout, capsys):
    model = broken(tiny_llama())
    model.config.model_type = model_type
    scorer = ChoiceScorer(model, 0, is_sharded=True)
    scorer.check_layout(SETS)
    assert scorer.layout == layout
    assert ("sharded weights cannot be checked" in capsys.readouterr().err) == (layout == "separate")


def test_another_model_is_scored_in_the_same_layout():
    scorer, other = ChoiceScorer(tiny_llama(), 0, layout="packed"), tiny_llama(seed=5)
    torch.testing.assert_close(scorer.score(SETS, other), ChoiceScorer(other, 0).score(SETS))
    assert not torch.allclose(scorer.score(SETS), scorer.score(SETS, other), atol=0.01)
