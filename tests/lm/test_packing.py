"""prefrec.lm.packing: the layout tensor by tensor, and its mask against a loop that says the rule in words."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.lm import packing
from prefrec.lm.packing import pack, pack_passes, tokens_of
from prefrec.prompts import ChoiceSet

tokens = st.lists(st.integers(1, 99), min_size=1, max_size=5).map(tuple)
choice_sets = st.builds(ChoiceSet, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))


def allowed_in_words(choices: ChoiceSet, left: int, length: int) -> list[list[bool]]:
    """Who may attend to whom in one packed row, read off the rule of the module's docstring."""
    owner: list[object] = ["pad"] * left + ["prompt"] * len(choices.prompt)
    for i, answer in enumerate(choices.answers):
        owner += [i] * (len(answer) - 1)  # its last token predicts nothing
    owner += ["pad"] * (length - len(owner))

    def may(q: int, k: int) -> bool:
        if owner[q] == "pad" or owner[k] == "pad":
            return q == k
        return k <= q and owner[k] in ("prompt", owner[q])

    return [[may(q, k) for k in range(length)] for q in range(length)]


def test_the_docstrings_example():
    assert doctest.testmod(packing, extraglobs={"ChoiceSet": ChoiceSet}).failed == 0


@settings(deadline=None)
@given(st.lists(choice_sets, min_size=1, max_size=3))
def test_mask_says_the_rule(sets):
    batch = pack(sets, pad_id=0)
    start = max(len(c.prompt) for c in sets)
    for r, choices in enumerate(sets):
        expected = allowed_in_words(choices, start - len(choices.prompt), batch.input_ids.shape[1])
        assert batch.attention_mask[r, 0].tolist() == expected


@settings(deadline=None)
@given(st.lists(choice_sets, min_size=1, max_size=3), st.sampled_from(["packed", "separate"]))
def test_every_answer_token_is_read_one_place_before_it(sets, layout):
    batch = pack(sets, pad_id=0, layout=layout)
    first = batch.input_ids.shape[1] - batch.logits_to_keep
    width = batch.choice_mask.shape[1]
    found: dict[int, list[int]] = {}
    for row, column, target, choice in zip(
        batch.rows.tolist(), batch.columns.tolist(), batch.targets.tolist(), batch.choices.tolist(), strict=True
    ):
        found.setdefault(choice, []).append(target)
        source = first + column
        before = (*sets[choice // width].prompt, *found[choice])[-2]
        assert batch.input_ids[row, source] == before
        assert batch.position_ids[row, source] == len(sets[choice // width].prompt) + len(found[choice]) - 2
    for b, choices in enumerate(sets):
        for c, answer in enumerate(choices.answers):
            assert tuple(found[b * width + c]) == answer


@settings(deadline=None)
@given(choice_sets, st.sampled_from(["packed", "separate"]))
def test_each_token_from_the_prompts_last_one_on_predicts_something(choices, layout):
    batch = pack([choices], pad_id=0, layout=layout)  # 0 is no token of the set
    start = len(choices.prompt) - 1
    read = set(zip(batch.rows.tolist(), (batch.columns + start).tolist(), strict=True))
    assert read == {(r, c) for r, c in batch.input_ids.nonzero().tolist() if c >= start}


def test_ragged_rows_are_masked():
    batch = pack([ChoiceSet((1,), ((2,), (3,))), ChoiceSet((1,), ((2,),))], pad_id=0)
    assert batch.choice_mask.tolist() == [[True, True], [True, False]]


def test_separate_rows_are_padded_on_the_right():
    """No token comes after padding: models without a notion of it are right too."""
    batch = pack([ChoiceSet((1, 2, 3), ((4, 9),)), ChoiceSet((5,), ((6, 9), (9,)))], pad_id=0, layout="separate")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [5, 0, 0, 0]]
    assert batch.attention_mask.long().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.logits_to_keep == 4
    assert batch.columns.tolist() == [2, 3, 0, 1, 0]
    assert batch.rows.tolist() == [0, 0, 1, 1, 2]
    assert batch.choices.tolist() == [0, 0, 2, 2, 3]


def test_padding_may_be_any_token_of_the_vocabulary():
    sets = [ChoiceSet((7, 7), ((7,),)), ChoiceSet((7,), ((7, 7),))]
    one, two = pack(sets, pad_id=0), pack(sets, pad_id=7)
    assert torch.equal(one.attention_mask, two.attention_mask)
    assert torch.equal(one.columns, two.columns)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "no choice sets"),
        ([ChoiceSet((), ((1,),))], "empty prompt"),
        ([ChoiceSet((1,), ())], "no answer"),
        ([ChoiceSet((1,), ((2,), ()))], "empty one"),
    ],
)
def test_bad_input_is_named(sets, message):
    with pytest.raises(ValueError, match=message):
        pack(sets, pad_id=0)


@settings(deadline=None)
@given(st.lists(choice_sets, min_size=1, max_size=3), st.sampled_from(["packed", "separate"]), st.integers(1, 40))
def test_passes_cover_every_answer_once_within_the_budget(sets, layout, budget):
    passes = pack_passes(sets, pad_id=0, layout=layout, max_tokens=budget)
    whole = pack(sets, pad_id=0, layout=layout)
    assert torch.equal(sum(p.choice_mask.long() for p in passes), whole.choice_mask.long())
    targets = sorted((c, t) for p in passes for c, t in zip(p.choices.tolist(), p.targets.tolist(), strict=True))
    assert targets == sorted(zip(whole.choices.tolist(), whole.targets.tolist(), strict=True))
    for p in passes:
        assert p.choice_mask.any()
        assert p.input_ids.numel() <= budget or p.choice_mask.sum() == 1
        assert set(p.choices.tolist()) == set(p.choice_mask.view(-1).nonzero().view(-1).tolist())


def test_without_a_budget_or_with_a_large_one_there_is_one_pass():
    sets = [ChoiceSet((1, 2), ((3,), (4, 5))), ChoiceSet((1,), ((3,),))]
    whole = pack(sets, pad_id=0).as_dict()
    for budget in (None, 6):
        (batch,) = pack_passes(sets, pad_id=0, max_tokens=budget)
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(whole[k])) for k, v in batch.as_dict().items())
    assert len(pack_passes(sets, pad_id=0, max_tokens=5)) == 2


def test_tokens_of_a_row():
    sets = [ChoiceSet((1, 2, 3), ((4, 9), (5, 6, 9)))]
    assert tokens_of(sets[0]) == 6 == pack(sets, pad_id=0).input_ids.shape[1]
