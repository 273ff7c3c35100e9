"""prefrec.masks: the forms of a mask, entry by entry."""

from types import SimpleNamespace

import pytest
import torch

from prefrec.masks import attention_masks, layer_kinds
from prefrec.packing import pack
from prefrec.prompts import ChoiceSet

SETS = [ChoiceSet((1, 2, 3, 4), ((5, 6), (7, 8))), ChoiceSet((1, 2), ((5,), (6, 7, 8)))]


def config(**settings):
    return SimpleNamespace(**{"_attn_implementation": "sdpa", **settings})


def masks(**settings):
    batch = pack(SETS, pad_id=0)
    return attention_masks(config(**settings), batch.attention_mask, batch.position_ids, torch.float32)


def test_full_attention_takes_the_mask_as_it_is():
    assert torch.equal(masks(), pack(SETS, pad_id=0).attention_mask)


def test_eager_attention_adds_zero_where_a_token_is_seen_and_the_least_number_elsewhere():
    plain, added = pack(SETS, pad_id=0).attention_mask, masks(_attn_implementation="eager")
    assert added.dtype == torch.float32
    assert (added[plain] == 0).all()
    assert (added[~plain] == torch.finfo(torch.float32).min).all()


def test_a_window_is_measured_in_positions():
    """Both answers see the same two tokens of the prompt, wherever in the row they lie."""
    first_row = masks(sliding_window=3)[0, 0]
    assert first_row.long().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    "layers", [{"sliding_window": 3}, {"layer_types": ["chunked_attention"], "attention_chunk_size": 3}]
)
def test_queries_may_be_the_last_of_the_keys(layers):
    """What a block that follows cached keys needs: the last rows of the whole mask."""
    batch = pack(SETS, pad_id=0)
    last = attention_masks(config(**layers), batch.attention_mask[:, :, -3:], batch.position_ids, torch.float32)
    assert torch.equal(last, masks(**layers)[:, :, -3:])


def test_chunks_are_measured_in_positions():
    """Positions 0–3, then 4 and 5: in chunks of 3 the answers see the prompt's last token only."""
    layers = {"layer_types": ["chunked_attention"], "attention_chunk_size": 3}
    answers = masks(**layers)[0, 0, 4:]
    assert answers.long().tolist() == [
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 1],
    ]


def test_mixed_layers_take_a_mask_each():
    mixed = masks(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=3)
    assert sorted(mixed) == ["full_attention", "sliding_attention"]
    assert torch.equal(mixed["full_attention"], masks())
    assert torch.equal(mixed["sliding_attention"], masks(sliding_window=3))


def test_every_token_sees_at_least_itself():
    assert masks(sliding_window=1).any(-1).all()


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ["full_attention"]),
        ({"sliding_window": None}, ["full_attention"]),
        ({"sliding_window": 8}, ["sliding_attention"]),
        ({"sliding_window": 8, "use_sliding_window": False}, ["full_attention"]),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, ["full_attention"]),
        ({"layer_types": ["conv", "full_attention", "conv"]}, ["conv", "full_attention"]),
    ],
)
def test_kinds_of_layers(settings, kinds):
    assert layer_kinds(config(**settings)) == kinds
