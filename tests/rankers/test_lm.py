"""LMRanker against slow twins: one sequence a candidate, and one forward pass a generated token."""

import copy

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.nn.utils.rnn import pad_sequence

from prefrec.data import RankingExample
from prefrec.errors import DataError, ModelError, TokenizerError
from prefrec.lm.scorer import ChoiceScorer
from prefrec.rankers import LMRanker, load_lm
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.training import lora_config
from slow import slow_greedy, slow_logps, slow_logps_within
from tiny import broken, tiny_llama
from tiny_lists import CATALOGUE, IDS, examples
from tiny_run import TITLES, write_model
from tiny_training import draw_adapters

EXAMPLES = examples()


def _slow_scores(ranker: LMRanker, examples: list[RankingExample]) -> torch.Tensor:
    of = CATALOGUE.titles_of
    shown = ((of(e.history), of(e.candidates)) for e in examples)
    with torch.no_grad():
        sets = [ranker.encoder.encode(ranker.template, history, titles, titles) for history, titles in shown]
        return pad_sequence([slow_logps(ranker.model, c) for c in sets], True, -torch.inf)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    finite = np.isfinite(a)
    return float(np.abs(a[finite] - b[finite]).max())


@pytest.mark.parametrize("settings", [{}, {"chat": True}, {"max_length": 90}, {"batch_size": 1}, {"batch_size": 3}])
def test_scores_equal_the_slow_twin(lm_of, settings):
    lm = lm_of(**settings)
    scores = lm.score(EXAMPLES)
    assert (scores.shape, scores.dtype) == ((5, 6), np.float64)
    np.testing.assert_allclose(scores, _slow_scores(lm, EXAMPLES), rtol=0, atol=1e-4)
    assert (scores == -np.inf).sum() == 4
    assert (lm.encoder.shortened > 0) == ("max_length" in settings)


@pytest.mark.parametrize("settings", [{}, {"chat": True}])
def test_scores_within_the_catalogue_equal_the_slow_twin(lm_of, settings):
    lm, rows, want = lm_of(objective="catalogue", **settings), EXAMPLES[:2], []
    for example in rows:
        history, shown = CATALOGUE.titles_of(example.history), CATALOGUE.titles_of(example.candidates)
        choices = lm.encoder.encode(lm.template, history, shown, TITLES)
        whole = slow_logps_within(lm.model, choices.prompt, choices.answers)
        want.append(torch.tensor([whole[IDS.index(c)] for c in example.candidates]))
    np.testing.assert_allclose(lm.score(rows), pad_sequence(want, True, -torch.inf), rtol=0, atol=1e-4)
    assert _gap(lm.score(rows), lm_of(**settings).score(rows)) > 1


def test_models_that_break_packed_rows_are_found_on_the_first_batch(lm_of, capsys):
    packed, checked = lm_of(), lm_of(model=broken(tiny_llama(), "refuses the mask"))
    for _ in range(2):
        np.testing.assert_allclose(checked.score(EXAMPLES), packed.score(EXAMPLES), rtol=0, atol=1e-4)
    assert (packed.scorer.layout, checked.scorer.layout) == ("packed", "separate")
    assert capsys.readouterr().err.count("model type 'llama': the packed layout fails") == 1


def test_the_target_does_not_leak_into_the_scores(lm_of):
    other = [RankingExample(e.user_id, e.history, e.candidates, e.candidates[0]) for e in EXAMPLES]
    assert (lm_of().score(EXAMPLES) == lm_of().score(other)).all()
    assert lm_of().generate(EXAMPLES) == lm_of().generate(other)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generation_equals_a_naive_greedy_loop(lm_of, bpe_tokenizer, batch_size):
    """Prompts of different lengths in one batch: padding on the left changes nothing."""
    lm, want, of = lm_of(batch_size=batch_size), [], CATALOGUE.titles_of
    with torch.no_grad():
        for e in EXAMPLES:
            prompt = lm.encoder.encode(lm.template, of(e.history), of(e.candidates), ["any"]).prompt
            want.append(bpe_tokenizer.decode(slow_greedy(lm.model, prompt, lm.encoder.end, MAX_NEW_TOKENS)))
    assert lm.generate(EXAMPLES) == want
    assert len(set(want)) > 1


def test_generation_stops_at_the_end_token_or_after_20(lm_of, bpe_tokenizer, model):
    lm, end = lm_of(), bpe_tokenizer.eos_token_id
    with torch.no_grad():
        first = lm._generate([(5, 6, 7)])
        assert len(slow_greedy(model, (5, 6, 7), end, 100)) > MAX_NEW_TOKENS
        assert first == [bpe_tokenizer.decode(slow_greedy(model, (5, 6, 7), end, 20))]
        model.lm_head.weight[end] = 100 * model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        assert lm._generate([(5, 6, 7)]) == [""]


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.8, "num_beams": 3}, {"do_sample": True, "temperature": 3.0}]
)
def test_generation_is_greedy_whatever_the_models_own_settings(lm_of, model, setting):
    want = lm_of().generate(EXAMPLES)
    other = copy.deepcopy(model)
    other.generation_config.update(**setting)
    assert lm_of(model=other).generate(EXAMPLES) == want


def test_an_adapter_changes_the_scores(lm_of, model):
    want = lm_of().score(EXAMPLES)
    adapted = get_peft_model(copy.deepcopy(model), lora_config(4))
    np.testing.assert_allclose(lm_of(model=adapted).score(EXAMPLES), want, rtol=0, atol=1e-4)
    draw_adapters(adapted, 0.05)
    changed = lm_of(model=adapted).score(EXAMPLES)
    assert (np.isfinite(changed) == np.isfinite(want)).all()
    assert _gap(changed, want) > 0.1


def test_what_cannot_be_asked_is_named(lm_of):
    with pytest.raises(DataError, match="item 'nobody' is not in the catalogue"):
        lm_of().score([RankingExample("u", ("i1",), ("i2", "nobody"), "i2")])
    with pytest.raises(TokenizerError, match="even without a history, but max_length is 40"):
        lm_of(max_length=40).score(EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_model(tmp_path_factory.mktemp("lm") / "model", bpe_tokenizer)


@pytest.fixture
def adapter(tmp_path):
    base = get_peft_model(tiny_llama(), lora_config(4))
    draw_adapters(base, 0.05)
    base.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_load_lm_with_and_without_adapter(folder, adapter, lm_of):
    plain, tokenizer = load_lm(str(folder), dtype="float32")
    adapted, _ = load_lm(str(folder), adapter, dtype="bfloat16")
    assert (plain.training, adapted.training) == (False, False)
    assert tokenizer.eos_token == "<|im_end|>"
    assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}
    assert _gap(lm_of(model=plain).score(EXAMPLES), lm_of(model=adapted).score(EXAMPLES)) > 0.1


def test_load_lm_refuses_an_adapter_of_another_base(adapter, tmp_path, bpe_tokenizer):
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "wide")
    bpe_tokenizer.save_pretrained(tmp_path / "wide")
    message = f"the adapter in {adapter} cannot be read, or belongs to another base model"
    with pytest.raises(ModelError, match=message):
        load_lm(str(tmp_path / "wide"), adapter)


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_a_budget_of_tokens_changes_passes_and_not_scores(lm_of, layout):
    def scores(budget):
        lm, passes = lm_of(max_tokens_per_pass=budget), []
        lm.scorer = ChoiceScorer(lm.model, lm.encoder.end, layout=layout, max_tokens=budget)
        hook = lm.model.register_forward_pre_hook(
            lambda model, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        got = lm.score(EXAMPLES)
        hook.remove()
        return got, passes

    (want, whole), (got, parts) = scores(None), scores(120)
    assert len(whole) == 1
    assert len(parts) > 5
    assert all(rows * length <= 120 for rows, length in parts)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
