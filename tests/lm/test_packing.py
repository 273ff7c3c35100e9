"""prefrec.lm.packing: the layout tensor by tensor, and its mask against a loop that says the rule in words."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefrec.lm import packing
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.packing import LENGTHS, SHARED_TOKENS, alike, pack, pack_passes, pack_trajectories, tokens_of
from prefrec.prompts import ChoiceSet, Trajectory

tokens = st.lists(st.integers(1, 99), min_size=1, max_size=5).map(tuple)
choice_sets = st.builds(ChoiceSet, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))
trajectories = st.builds(Trajectory, tokens, tokens, tokens, st.lists(tokens, min_size=1, max_size=6).map(tuple))


def allowed_in_words(choices: ChoiceSet, left: int, length: int) -> list[list[bool]]:
    """Who may attend to whom in one packed row, read off the rule of the module's docstring."""
    owner: list[object] = ["pad"] * left + ["prompt"] * len(choices.prompt)
    for i, answer in enumerate(choices.answers):
        owner += [i] * (len(answer) - 1)  # its last token predicts nothing
    owner += ["pad"] * (length - len(owner))

    def may(q: int, k: int) -> bool:
        return q == k if "pad" in (owner[q], owner[k]) else k <= q and owner[k] in ("prompt", owner[q])

    return [[may(q, k) for k in range(length)] for q in range(length)]


def test_the_docstrings_example():
    assert doctest.testmod(packing, extraglobs={"ChoiceSet": ChoiceSet}).failed == 0


@given(st.lists(choice_sets, min_size=1, max_size=3))
def test_mask_says_the_rule(sets):
    batch = pack(sets, pad_id=0)
    start = max(len(c.prompt) for c in sets)
    for r, choices in enumerate(sets):
        expected = allowed_in_words(choices, start - len(choices.prompt), batch.input_ids.shape[1])
        assert batch.attention_mask[r, 0].tolist() == expected


@given(st.lists(choice_sets, min_size=1, max_size=3), st.sampled_from(["packed", "separate"]))
def test_every_answer_token_is_read_one_place_before_it(sets, layout):
    batch = pack(sets, pad_id=0, layout=layout)
    first, width = batch.input_ids.shape[1] - batch.logits_to_keep, batch.choice_mask.shape[1]
    found = {}
    columns = (batch.rows, batch.columns, batch.targets, batch.choices)
    for row, column, target, choice in zip(*(c.tolist() for c in columns), strict=True):
        found.setdefault(choice, []).append(target)
        source = first + column
        before = (*sets[choice // width].prompt, *found[choice])[-2]
        assert batch.input_ids[row, source] == before
        assert batch.position_ids[row, source] == len(sets[choice // width].prompt) + len(found[choice]) - 2
    for b, choices in enumerate(sets):
        for c, answer in enumerate(choices.answers):
            assert tuple(found[b * width + c]) == answer


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


def test_tokens_of_a_trajectory():
    assert tokens_of(Trajectory((1, 2), (3,), (4, 4), ((5, 9), (6, 7, 9), (8, 9)))) == 2 + 1 + 1 + 2 + 2 + 1


def test_a_batch_moves_with_its_tensors():
    batch = pack([ChoiceSet((1, 2), ((3,), (4, 5)))], pad_id=0)
    assert "nodes" not in batch.as_dict()
    moved = batch.to("meta")
    assert moved.logits_to_keep == batch.logits_to_keep
    assert {v.device.type for v in moved.as_dict().values() if isinstance(v, torch.Tensor)} == {"meta"}
    assert batch.input_ids.device.type == "cpu"
    kinds = {k: v.dtype for k, v in batch.as_dict().items() if isinstance(v, torch.Tensor)}
    assert {k for k, kind in kinds.items() if kind == torch.bool} == {"attention_mask", "choice_mask"}
    assert set(kinds.values()) == {torch.bool, torch.long}


def test_calls_are_as_few_as_the_budget_allows():
    """Prompts of 2 and answers of 1: three tokens per row; a long prompt makes the rows beside it longer."""
    short, long = ChoiceSet((1, 2), ((3, 9),)), ChoiceSet((1,) * 5, ((3, 9),))
    sizes = lambda sets, budget: [len(p.input_ids) for p in pack_passes(sets, pad_id=0, max_tokens=budget)]  # noqa: E731
    assert sizes([short] * 5, 6) == [2, 2, 1]
    assert sizes([short] * 5, 8) == [2, 2, 1]
    assert sizes([short] * 5, 9) == [3, 2]
    assert sizes([short, long, short, short, short, short], 12) == [2, 4]
    assert sizes([long, short, short], 3) == [1, 1, 1]


def test_answers_share_rows_as_the_budget_allows():
    choices = ChoiceSet((1, 2), ((3, 9), (4, 4, 9), (5, 9), (6, 9), (7, 7, 7, 9)))
    rows = [r for p in pack_passes([choices], pad_id=0, max_tokens=5) for r in p.input_ids.tolist()]
    assert rows == [[1, 2, 3, 4, 4], [1, 2, 5, 6], [1, 2, 7, 7, 7]]


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_within_a_catalogue_only_tokens_with_siblings_are_scored(layout):
    """5 or 7, then 6 or 8 after 5; the end token 9 has no sibling."""
    titles = ((5, 6, 9), (5, 8, 9), (7, 6, 9))
    within = CatalogueSoftmax(titles)
    (batch,) = pack_passes([ChoiceSet((1, 2), titles)], pad_id=0, layout=layout, within=within)
    assert batch.targets.tolist() == [5, 6, 5, 8, 7]
    assert batch.choices.tolist() == [0, 0, 1, 1, 2]
    at_root, after_5 = (within.route(titles[0])[i][1] for i in (0, 1))
    assert batch.nodes.tolist() == [at_root, after_5, at_root, after_5, at_root]
    first = batch.input_ids.shape[1] - batch.logits_to_keep
    assert batch.input_ids[batch.rows, first + batch.columns].tolist() == [2, 5, 2, 5, 2]
    assert batch.choice_mask.tolist() == [[True] * 3]
    assert 6 not in batch.input_ids  # what is not needed for a scored token does not go through the model


@given(st.lists(trajectories, min_size=1, max_size=6), st.sampled_from(["packed", "separate"]))
def test_titles_of_trajectories_are_read_in_their_own_text(rows, layout):
    batch = pack_trajectories(rows, pad_id=0, layout=layout)
    length = batch.input_ids.shape[1]
    assert length % LENGTHS == 0
    assert length - max(t.length for t in rows) < LENGTHS
    assert batch.logits_to_keep == length
    most = max(len(t.answers) for t in rows)
    assert batch.choice_mask.tolist() == [[c < len(t.answers) for c in range(most)] for t in rows]
    assert layout == "packed" or len(batch.input_ids) == len(rows)
    columns = (batch.rows, batch.columns, batch.targets, batch.choices)
    entries = list(zip(*(c.tolist() for c in columns), strict=True))
    used = []
    for b, t in enumerate(rows):
        text, expected = list(t.head), []
        for c, answer in enumerate(t.answers):
            expected += [(len(text) - 1 + i, token, b * most + c) for i, token in enumerate(answer)]
            text += [*answer[:-1], *t.joint_after(c)]
        own = [e for e in entries if e[3] // most == b]
        (row,) = {e[0] for e in own}
        start = own[0][1] - expected[0][0]
        place = slice(start, start + len(text))
        assert [(column - start, target, choice) for _, column, target, choice in own] == expected
        assert batch.input_ids[row, place].tolist() == text
        assert batch.position_ids[row, place].tolist() == list(range(len(text)))
        used += [(row, column) for column in range(start, start + len(text))]
        if layout == "packed":
            seen = batch.attention_mask[row, 0, place]
            assert seen[:, place].tolist() == torch.ones(len(text), len(text)).tril().bool().tolist()
            assert seen.sum() == len(text) * (len(text) + 1) // 2  # and nothing outside of the text
        else:
            assert batch.attention_mask[row].nonzero().flatten().tolist() == list(range(len(text)))
    assert len(set(used)) == len(used)


def test_short_trajectories_share_rows_first_fit_and_longest_first():
    texts = [Trajectory((1,) * (length - 1), (2,), (2,), ((3, 9),)) for length in (30, 40, 20, 34, 64)]
    batch = pack_trajectories(texts, pad_id=0)
    assert batch.input_ids.shape == (3, 64)
    assert dict(zip(batch.choices.tolist(), batch.rows.tolist(), strict=True)) == {4: 0, 1: 1, 3: 2, 0: 2, 2: 1}


def test_trajectories_within_a_catalogue():
    within = CatalogueSoftmax(((5, 9), (6, 7, 9)))
    batch = pack_trajectories([Trajectory((1, 2), (3,), (3,), ((5, 9), (6, 7, 9)))], pad_id=0, within=within)
    assert (batch.columns.tolist(), batch.targets.tolist(), batch.choices.tolist()) == ([1, 3], [5, 6], [0, 1])


def test_choice_sets_share_a_row_where_half_of_the_prompt_is_the_same_and_there_is_room(monkeypatch):
    text = tuple(range(1, 9))
    sets = [ChoiceSet(text[:n], ((50, 51, 9), (60, 9))) for n in (4, 6, 8)]
    assert alike(sets) == [[0, 1, 2]]
    (batch,) = pack_passes(sets, pad_id=0, share=True)
    assert batch.input_ids.tolist() == [[*text, 50, 51, 60, 50, 51, 60, 50, 51, 60]]
    assert batch.position_ids[0, 8:].tolist() == [4, 5, 4, 6, 7, 6, 8, 9, 8]
    assert batch.choices.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert batch.choice_mask.all()
    assert alike([sets[0], ChoiceSet((1, 2, 3, 4, 5, 6, 7, 8, 9), ((50, 9),))]) == [[0, 1]]
    assert alike([ChoiceSet((1, 2, 3), ((50, 9),)), ChoiceSet((1, 7, 8), ((50, 9),))]) == [[0], [1]]
    half = [ChoiceSet((1, 2, 3, 4), ((50, 9),)), ChoiceSet((1, 2, 9), ((50, 9),))]
    (batch,) = pack_passes(half, pad_id=0, share=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 50, 9, 50]]  # the longest prompt, and the rest of the other
    long = ChoiceSet(text, (tuple([7] * (SHARED_TOKENS // 2)),))
    assert alike([long, long, long]) == [[0], [1], [2]]
    assert [len(p.input_ids) for p in pack_passes(sets, pad_id=0)] == [3]
    assert [len(p.input_ids) for p in pack_passes(sets, pad_id=0, share=True, layout="separate")] == [6]
    for room, groups in ((11, [[0], [1], [2]]), (12, [[0, 1], [2]]), (16, [[0, 1], [2]]), (17, [[0, 1, 2]])):
        monkeypatch.setattr(packing, "SHARED_TOKENS", room)
        assert alike(sets) == groups


beginnings = st.builds(lambda n, rest: (*range(100, 100 + n), *rest), st.integers(1, 6), st.just(()) | tokens)
similar = st.builds(ChoiceSet, beginnings, st.lists(tokens, min_size=1, max_size=3).map(tuple))


@given(st.lists(similar, min_size=1, max_size=4), st.booleans())
def test_each_token_is_predicted_from_its_prompt_and_its_answer_so_far(sets, share):
    """What the query of each answer token may see, in the order of positions; shared rows, too."""
    (batch,) = pack_passes(sets, pad_id=0, share=share)
    first, width = batch.input_ids.shape[1] - batch.logits_to_keep, batch.choice_mask.shape[1]
    done = {}
    columns = (batch.rows, batch.columns, batch.targets, batch.choices)
    for row, column, target, choice in zip(*(c.tolist() for c in columns), strict=True):
        choices = sets[choice // width]
        answer, so_far = choices.answers[choice % width], done.get(choice, 0)
        seen = batch.attention_mask[row, 0, first + column].nonzero().flatten()
        positions = batch.position_ids[row, seen]
        assert sorted(positions.tolist()) == list(range(len(choices.prompt) + so_far))
        assert tuple(batch.input_ids[row, seen[positions.argsort()]].tolist()) == choices.prompt + answer[:so_far]
        assert target == answer[so_far]
        done[choice] = so_far + 1
    assert done == {b * width + c: len(a) for b, s in enumerate(sets) for c, a in enumerate(s.answers)}
    assert len(batch.input_ids) == (len(alike(sets)) if share else len(sets))


def test_rows_have_few_lengths_and_little_padding():
    for prompt in range(1, 600):
        width = pack([ChoiceSet((1,) * prompt, ((5, 6, 9),))], pad_id=0).input_ids.shape[1]
        assert prompt + 2 <= width <= 17 / 16 * (prompt + 2)
        assert width % (16 if prompt >= 256 else 8 if prompt >= 128 else 1) == 0


def test_padding_counts_in_a_budget():
    one, three = (ChoiceSet((1,) * 280, ((5, 6, 7, 8, 9),) * n) for n in (1, 3))  # 284 and 292 tokens: 288 and 304
    for choices, budget in (([one, one], 570), ([three], 300)):
        passes = pack_passes(choices, pad_id=0, max_tokens=budget)
        assert [p.input_ids.shape for p in passes] == [(1, 288)] * 2
