"""Likelihood within a catalogue, against a loop over the children of every prefix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.lm.catalogue import catalogue_logps
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.packing import pack_passes, pack_trajectories
from prefrec.lm.scoring import choice_logps
from prefrec.lm.search import top_k
from prefrec.prompts import ChoiceSet, Trajectory
from slow import slow_logps_within
from tiny import ANSWERS, PROMPT, tiny_llama


def test_an_answer_that_is_not_there() -> None:
    within = CatalogueSoftmax(ANSWERS)
    for ask in (within.route, within.terminal):
        with pytest.raises(ValueError, match="not in the catalogue of 7 titles"):
            ask((5, 8))


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("max_tokens", [None, 7])
def test_packed_scores_are_those_of_a_loop(layout: str, max_tokens: int | None) -> None:
    model, within = tiny_llama(), CatalogueSoftmax(ANSWERS)
    sets = [ChoiceSet(PROMPT, ANSWERS), ChoiceSet(PROMPT[:2], ANSWERS[2:4])]
    passes = pack_passes(sets, pad_id=0, layout=layout, max_tokens=max_tokens, within=within)
    with torch.no_grad():
        got = choice_logps(model, *passes, within=within)
    torch.testing.assert_close(got[0], torch.tensor(slow_logps_within(model, PROMPT, ANSWERS)))
    assert got[0].exp().sum() == pytest.approx(1)
    some = slow_logps_within(model, PROMPT[:2], ANSWERS)[2:4]
    assert got[1].tolist() == pytest.approx([*some, *[-math.inf] * 5], abs=1e-4)


def test_gradients_are_those_of_the_full_head() -> None:
    within = CatalogueSoftmax(ANSWERS)
    passes = pack_passes([ChoiceSet(PROMPT, ANSWERS)], pad_id=0, within=within)
    found = []
    for model_type in ("llama", "unheard-of"):
        model = tiny_llama()
        model.config.model_type = model_type  # an unknown type keeps its whole head
        choice_logps(model, *passes, within=within)[0, 2].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)


def test_a_batch_that_was_packed_otherwise_is_refused() -> None:
    model, within = tiny_llama(), CatalogueSoftmax(ANSWERS)
    with pytest.raises(ValueError, match="catalogue that it was packed with"):
        choice_logps(model, *pack_passes([ChoiceSet(PROMPT, ANSWERS)], pad_id=0), within=within)


@pytest.mark.parametrize("layout", ["cached", "repeated", "separate"])
def test_the_whole_catalogue_is_read_as_its_titles_are(layout: str) -> None:
    model, within = tiny_llama(), CatalogueSoftmax(ANSWERS)
    want = slow_logps_within(model, PROMPT, ANSWERS)
    got = catalogue_logps(model, PROMPT, within.trie, layout=layout, block_tokens=3, within=within)
    assert got.tolist() == pytest.approx(want, abs=1e-4)
    best = top_k(model, PROMPT, within.trie, 3, layout=layout, within=within)
    assert best.items.tolist() == sorted(range(7), key=lambda i: -want[i])[:3]


def test_every_title_of_a_history_is_scored_as_an_answer_to_what_is_before_it() -> None:
    model, within = tiny_llama(), CatalogueSoftmax(ANSWERS)
    history = Trajectory((1, 2), (3,), (3,), ANSWERS[:4])
    other = Trajectory((1, 2), (3,), (4, 3), ANSWERS[4:6])
    prompts = [(1, 2), (1, 2, 5, 6, 3), (1, 2, 5, 6, 3, 5, 3), (1, 2, 5, 6, 3, 5, 3, 7, 3)]
    for scored_in in (None, within):
        batch = pack_trajectories([history, other], pad_id=0, within=scored_in)
        assert len(batch.input_ids) == 1, "short histories share a row"
        separate = pack_trajectories([history, other], pad_id=0, layout="separate", within=scored_in)
        one_by_one = [
            pack_passes([ChoiceSet(p, (a,))], pad_id=0, within=scored_in)
            for p, a in zip([*prompts, (1, 2), (1, 2, 10, 11, 12, 4, 3)], ANSWERS, strict=False)
        ]
        with torch.no_grad():
            apart, got = (choice_logps(model, of, within=scored_in) for of in (separate, batch))
            want = [choice_logps(model, *passes, within=scored_in) for passes in one_by_one]
        torch.testing.assert_close(torch.cat([got[0], got[1, :2]]), torch.cat(want).flatten())
        torch.testing.assert_close(got, apart)
        assert got[1, 2:].tolist() == [-math.inf] * 2


@given(st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_rows_hold_every_history_once_and_no_more_than_fits(lengths: list[int]) -> None:
    histories = [Trajectory((1,) * n, (), (), ((9,),)) for n in lengths]
    batch = pack_trajectories(histories, pad_id=0)
    assert int((batch.input_ids == 1).sum()) == sum(lengths)
    assert batch.choices.sort().values.tolist() == list(range(len(lengths)))
    assert len(batch.input_ids) <= 1 + 2 * sum(lengths) // batch.input_ids.shape[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=1, max_size=12))
def test_probabilities_of_all_titles_sum_to_one(titles: list[list[int]]) -> None:
    answers = tuple(dict.fromkeys((*title, 9) for title in titles))
    model, within = tiny_llama(), CatalogueSoftmax(answers)
    passes = pack_passes([ChoiceSet(PROMPT, answers)], pad_id=0, within=within)
    with torch.no_grad():
        assert choice_logps(model, *passes, within=within).exp().sum() == pytest.approx(1, abs=1e-4)
