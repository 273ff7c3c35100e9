"""LMRanker against slow twins: one sequence a candidate, and one forward pass a generated token."""

import copy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peft import get_peft_model

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError, ModelError, TokenizerError
from prefrec.lm.scorer import ChoiceScorer
from prefrec.prompts import ChoiceSet, load_template
from prefrec.rankers import GeneratingRanker, LMRanker, Ranker, load_lm
from prefrec.rankers.lm import MAX_NEW_TOKENS
from prefrec.training import lora_config
from slow import slow_greedy, slow_logps, slow_logps_within
from tiny import broken, tiny_llama
from tiny_run import TITLES, write_model

IDS = [f"i{i}" for i in range(len(TITLES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))


def _examples(n: int = 5) -> list[RankingExample]:
    """Histories of 1 to n items, lists of 6 and 4 candidates by turns."""
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(IDS).tolist() for _ in range(n)]
    return [
        RankingExample(f"u{u}", tuple(d[: u + 1]), tuple(d[20 : 26 - 2 * (u % 2)]), d[21])
        for u, d in enumerate(drawn)
    ]


@pytest.fixture
def ranker(model, bpe_tokenizer):
    def make(**settings) -> LMRanker:
        template = load_template("movies/1")
        settings = {"objective": "tokens"} | settings
        return LMRanker("lm", settings.pop("model", model), bpe_tokenizer, CATALOGUE, template, **settings)

    return make


def _slow_scores(ranker: LMRanker, example: RankingExample) -> np.ndarray:
    history, titles = CATALOGUE.titles_of(example.history), CATALOGUE.titles_of(example.candidates)
    with torch.no_grad():
        return slow_logps(ranker.model, ranker.encoder.encode(ranker.template, history, titles, titles)).numpy()


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    finite = np.isfinite(a)
    return float(np.abs(a[finite] - b[finite]).max())


def test_it_is_a_ranker(ranker):
    assert isinstance(ranker(), Ranker)
    assert isinstance(ranker(), GeneratingRanker)


@pytest.mark.parametrize("settings", [{}, {"chat": True}, {"max_length": 90}])
def test_scores_equal_the_slow_twin(ranker, settings):
    lm, examples = ranker(**settings), _examples()
    scores = lm.score(examples)
    assert scores.shape == (5, 6)
    assert scores.dtype == np.float64
    for row, example in zip(scores, examples, strict=True):
        want = _slow_scores(lm, example)
        np.testing.assert_allclose(row[: len(want)], want, rtol=0, atol=1e-4)
        assert (row[len(want) :] == -np.inf).all()
    assert (scores == -np.inf).sum() == 4
    assert (lm.encoder.shortened > 0) == ("max_length" in settings)


@pytest.mark.parametrize("settings", [{}, {"chat": True}])
def test_scores_within_the_catalogue_equal_the_slow_twin(ranker, settings):
    lm, examples = ranker(objective="catalogue", **settings), _examples(2)
    for row, example in zip(lm.score(examples), examples, strict=True):
        history, shown = CATALOGUE.titles_of(example.history), CATALOGUE.titles_of(example.candidates)
        choices = lm.encoder.encode(lm.template, history, shown, TITLES)
        want = slow_logps_within(lm.model, choices.prompt, choices.answers)
        asked = [want[IDS.index(c)] for c in example.candidates]
        np.testing.assert_allclose(row[: len(asked)], asked, rtol=0, atol=1e-4)
        assert (row[len(asked) :] == -np.inf).all()
    assert _gap(lm.score(examples), ranker(objective="tokens", **settings).score(examples)) > 1


def test_probabilities_within_the_catalogue_sum_to_one(ranker):
    lm = ranker(objective="catalogue")
    (scores,) = lm.score([RankingExample("u", tuple(IDS[:3]), tuple(IDS), IDS[4])])
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)


def test_model_types_that_cannot_branch_are_scored_all_the_same(ranker):
    bloom = tiny_llama()
    bloom.config.model_type = "bloom"
    packed, separate = ranker(), ranker(model=bloom)
    np.testing.assert_allclose(separate.score(_examples()), packed.score(_examples()), rtol=0, atol=1e-4)
    assert (packed.scorer.layout, separate.scorer.layout) == ("packed", "separate")


def test_models_that_break_packed_rows_are_found_on_the_first_batch(ranker, capsys):
    packed, checked = ranker(), ranker(model=broken(tiny_llama(), "refuses the mask"))
    for _ in range(2):
        np.testing.assert_allclose(checked.score(_examples()), packed.score(_examples()), rtol=0, atol=1e-4)
    assert (packed.scorer.layout, checked.scorer.layout) == ("packed", "separate")
    assert capsys.readouterr().err.count("model type 'llama': the packed layout fails") == 1


@pytest.mark.parametrize("fault", ["ignores the mask", "ignores positions"])
def test_a_first_batch_in_which_nothing_branches_settles_nothing_wrongly(ranker, fault):
    """One answer a set; and one candidate in the row with the longest prompt."""
    first, second, *_, last = _examples()
    one = RankingExample("u", last.history, last.candidates[:1], last.candidates[0])
    want = ranker().score([one, first, second])
    alone = ranker(model=broken(tiny_llama(), fault))
    alone.choice_logps([ChoiceSet(c.prompt, c.answers[:1]) for c in alone._encode([first, second], "candidates")])
    for lm in (alone, ranker(model=broken(tiny_llama(), fault))):
        np.testing.assert_allclose(lm.score([one, first, second]), want, rtol=0, atol=1e-4)
        assert lm.scorer.layout == "separate"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_scores_do_not_depend_on_batch_size(ranker, batch_size):
    want = ranker(batch_size=5).score(_examples())
    np.testing.assert_allclose(ranker(batch_size=batch_size).score(_examples()), want, rtol=0, atol=1e-4)


def test_scores_follow_the_order_of_the_rows(ranker):
    examples, order = _examples(), [3, 0, 4, 2, 1]
    shuffled = ranker(batch_size=2).score([examples[i] for i in order])
    np.testing.assert_allclose(shuffled, ranker(batch_size=2).score(examples)[order], rtol=0, atol=1e-4)


def test_the_target_does_not_leak_into_the_scores(ranker):
    examples = _examples()
    other = [RankingExample(e.user_id, e.history, e.candidates, e.candidates[0]) for e in examples]
    assert (ranker().score(examples) == ranker().score(other)).all()
    assert ranker().generate(examples) == ranker().generate(other)


def test_no_rows_no_scores(ranker):
    assert ranker().score([]).shape == (0, 0)
    assert ranker().generate([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_generation_equals_a_naive_greedy_loop(ranker, bpe_tokenizer, batch_size):
    """Prompts of different lengths in one batch: padding on the left changes nothing."""
    lm, examples = ranker(batch_size=batch_size), _examples()
    want = []
    with torch.no_grad():
        for e in examples:
            titles = CATALOGUE.titles_of(e.candidates)
            prompt = lm.encoder.encode(lm.template, CATALOGUE.titles_of(e.history), titles, titles[:1]).prompt
            want.append(bpe_tokenizer.decode(slow_greedy(lm.model, prompt, lm.encoder.end, MAX_NEW_TOKENS)))
    assert lm.generate(examples) == want
    assert len(set(want)) > 1


def test_generation_stops_at_the_end_token_or_after_20(ranker, bpe_tokenizer, model):
    lm, end = ranker(), bpe_tokenizer.eos_token_id
    with torch.no_grad():
        first = lm._generate([(5, 6, 7)])
        assert len(slow_greedy(model, (5, 6, 7), end, 100)) > MAX_NEW_TOKENS
        assert first == [bpe_tokenizer.decode(slow_greedy(model, (5, 6, 7), end, 20))]
        model.lm_head.weight[end] = 100 * model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        assert lm._generate([(5, 6, 7)]) == [""]


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 3.0},
    ],
)
def test_generation_is_greedy_whatever_the_models_own_settings(ranker, model, setting):
    want = ranker().generate(_examples())
    other = copy.deepcopy(model)
    other.generation_config.update(**setting)
    assert ranker(model=other).generate(_examples()) == want


def test_an_adapter_changes_the_scores(ranker, model):
    want = ranker().score(_examples())
    adapted = get_peft_model(copy.deepcopy(model), lora_config(4))
    np.testing.assert_allclose(ranker(model=adapted).score(_examples()), want, rtol=0, atol=1e-4)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    changed = ranker(model=adapted).score(_examples())
    assert (np.isfinite(changed) == np.isfinite(want)).all()
    assert _gap(changed, want) > 0.1


def test_the_ranker_switches_dropout_off(ranker):
    model = tiny_llama(attention_dropout=0.9).train()
    assert (ranker(model=model).score(_examples()) == ranker(model=model).score(_examples())).all()


def test_an_unknown_item_is_named(ranker):
    with pytest.raises(DataError, match="item 'nobody' is not in the catalogue"):
        ranker().score([RankingExample("u", ("i1",), ("i2", "nobody"), "i2")])


def test_candidates_that_do_not_fit_are_refused(ranker):
    with pytest.raises(TokenizerError, match="even without a history, but max_length is 40"):
        ranker(max_length=40).score(_examples())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    return write_model(tmp_path_factory.mktemp("lm") / "model", bpe_tokenizer)


@pytest.fixture
def adapter(tmp_path):
    base = get_peft_model(tiny_llama(), lora_config(4))
    with torch.no_grad():
        for name, p in base.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    base.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_load_lm_with_and_without_adapter(folder, adapter, ranker):
    (plain, tokenizer), (adapted, _) = (
        load_lm(str(folder), dtype="float32"),
        load_lm(str(folder), adapter, dtype="bfloat16"),
    )
    assert not plain.training
    assert not adapted.training
    assert tokenizer.eos_token == "<|im_end|>"
    assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}
    assert _gap(ranker(model=plain).score(_examples()), ranker(model=adapted).score(_examples())) > 0.1


def test_load_lm_names_what_is_missing(folder, tmp_path):
    with pytest.raises(ModelError, match="no model at '/nowhere/x'"):
        load_lm("/nowhere/x")
    with pytest.raises(ModelError, match=f"no adapter in {tmp_path}: expected a folder with adapter_config.json"):
        load_lm(str(folder), tmp_path)
    with pytest.raises(ModelError, match="no adapter in nowhere"):
        load_lm(str(folder), Path("nowhere"))


def test_load_lm_refuses_an_adapter_of_another_base(adapter, tmp_path, bpe_tokenizer):
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "wide")
    bpe_tokenizer.save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ModelError, match=f"the adapter in {adapter} cannot be read, or belongs to another base model"
    ):
        load_lm(str(tmp_path / "wide"), adapter)


def test_load_lm_refuses_half_an_adapter(folder, adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be read"):
        load_lm(str(folder), adapter, dtype="bfloat16")


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_a_budget_of_tokens_changes_passes_and_not_scores(ranker, layout):
    def scores(budget):
        lm, passes = ranker(max_tokens_per_pass=budget), []
        lm.scorer = ChoiceScorer(lm.model, lm.encoder.end, layout=layout, max_tokens=budget)
        hook = lm.model.register_forward_pre_hook(
            lambda model, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        got = lm.score(_examples())
        hook.remove()
        return got, passes

    (want, whole), (got, parts) = scores(None), scores(120)
    assert len(whole) == 1
    assert len(parts) > 5
    assert all(rows * length <= 120 for rows, length in parts)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
