"""prefrec.lm.masks: the forms of a mask, entry by entry."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask

from prefrec.cpu.attention import ONEDNN
from prefrec.lm.masks import BLOCK, FLEX, attention_implementation, attention_masks, in_blocks, layer_kinds
from prefrec.lm.packing import pack
from prefrec.prompts import ChoiceSet

CHUNKS = {"layer_types": ["chunked_attention"], "attention_chunk_size": 3}
WINDOWS = [{}, {"sliding_window": 3}, {"sliding_window": BLOCK}, CHUNKS]
SETS = [ChoiceSet((1, 2, 3, 4), ((5, 6, 9), (7, 8, 9))), ChoiceSet((1, 2), ((5, 9), (6, 7, 8, 9)))]


def config(**settings):
    made = SimpleNamespace(**{"_attn_implementation": "sdpa", **settings})
    made.get_text_config = lambda: made
    return made


def masks(batch=None, last=0, dtype=torch.float32, **settings):
    """The masks of a batch (else of `SETS`), for all queries or the last few."""
    batch = batch or pack(SETS, pad_id=0)
    return attention_masks(config(**settings), batch.attention_mask[:, :, -last:], batch.position_ids, dtype)


def test_full_attention_takes_the_mask_as_it_is():
    assert torch.equal(masks(), pack(SETS, pad_id=0).attention_mask)


def test_eager_attention_adds_zero_where_a_token_is_seen_and_the_least_number_elsewhere():
    plain, added = pack(SETS, pad_id=0).attention_mask, masks(_attn_implementation="eager")
    assert added.dtype == torch.float32
    assert (added[plain] == 0).all()
    assert (added[~plain] == torch.finfo(torch.float32).min).all()
    half = masks(dtype=torch.bfloat16, _attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.min() == torch.finfo(torch.bfloat16).min


def test_a_window_is_measured_in_positions():
    """Both answers see the same two tokens of the prompt, wherever in the row they lie."""
    assert masks(sliding_window=3)[0, 0].long().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("layers", [{"sliding_window": 3}, CHUNKS])
def test_queries_may_be_the_last_of_the_keys(layers):
    """What a block that follows cached keys needs: the last rows of the whole mask."""
    assert torch.equal(masks(last=3, **layers), masks(**layers)[:, :, -3:])


def test_chunks_are_measured_in_positions():
    """Positions 0–3, then 4 and 5: in chunks of 3 the answers see the prompt's last token only."""
    assert masks(**CHUNKS)[0, 0, 4:].long().tolist() == [
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


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"_attn_implementation": n}, n) for n in ("sdpa", "eager", FLEX)]
    + [({}, "sdpa"), ({"_attn_implementation": None}, "sdpa"), ({"_attn_implementation": ONEDNN}, "sdpa")],
)
def test_onednn_takes_the_masks_of_sdpa(settings, name):
    assert attention_implementation(config(**settings)) == name


def test_a_model_of_text_and_images_is_asked_for_its_text():
    text = config(sliding_window=3, _attn_implementation="eager")
    whole = SimpleNamespace(get_text_config=lambda: text)
    assert (layer_kinds(whole), attention_implementation(whole)) == (["sliding_attention"], "eager")
    batch = pack(SETS, pad_id=0)
    inputs = batch.attention_mask, batch.position_ids, torch.float32
    assert torch.equal(attention_masks(whole, *inputs), attention_masks(text, *inputs))


def dense(mask: BlockMask) -> torch.Tensor:
    """A block mask entry by entry, [R, 1, Q, K]."""
    rows, _, queries, keys = mask.shape
    return create_mask(mask.mask_mod, rows, None, queries, keys, device="cpu")


def blocks(pairs: torch.Tensor) -> torch.Tensor:
    """[R, 1, blocks of queries, blocks of keys], True where anything is seen."""
    more = [-n % BLOCK for n in pairs.shape[-2:]]
    whole = torch.nn.functional.pad(pairs, (0, more[1], 0, more[0]))
    return whole.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).any(-1).any(-2)


@pytest.mark.parametrize("settings", WINDOWS, ids=str)
def test_a_block_mask_is_the_mask(settings):
    """Rows of several blocks, some of which are empty: an answer sees no other."""
    long = ChoiceSet(tuple(range(150)), (tuple(range(140)), (1, 2), tuple(range(130))))
    batch = in_blocks(pack([long, ChoiceSet((1, 2), ((3, 4), (5,)))], pad_id=0))
    mask, want = masks(batch, _attn_implementation=FLEX, **settings), masks(batch, **settings)
    assert mask.shape == want.shape == (2, 1, 512, 512)
    assert mask.BLOCK_SIZE == (BLOCK, BLOCK)
    assert torch.equal(dense(mask), want)
    assert torch.equal(mask.to_dense().bool(), blocks(want))
    assert not blocks(want)[0].all()


lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), lengths), min_size=1, max_size=3), st.sampled_from(WINDOWS))
def test_block_masks_of_any_rows(rows, window):
    sets = [ChoiceSet(tuple(range(prompt)), tuple((7,) * n for n in answers)) for prompt, answers in rows]
    batch = pack(sets, pad_id=0)
    assert torch.equal(dense(masks(batch, _attn_implementation=FLEX, **window)), masks(batch, **window))


@pytest.mark.parametrize("settings", WINDOWS, ids=str)
def test_a_block_mask_of_the_last_queries(settings):
    assert torch.equal(dense(masks(last=3, _attn_implementation=FLEX, **settings)), masks(last=3, **settings))


def test_mixed_layers_take_a_block_mask_each():
    mixed = masks(_attn_implementation=FLEX, layer_types=["sliding_attention", "full_attention"], sliding_window=3)
    assert torch.equal(dense(mixed["full_attention"]), masks())
    assert torch.equal(dense(mixed["sliding_attention"]), masks(sliding_window=3))


def test_rows_in_blocks_are_the_rows_with_padding_on_the_right():
    batch = pack(SETS, pad_id=0)
    whole, length = in_blocks(batch), batch.input_ids.shape[1]
    assert whole.input_ids.shape == whole.position_ids.shape == (2, BLOCK)
    assert torch.equal(whole.input_ids[:, :length], batch.input_ids)
    assert torch.equal(whole.position_ids[:, :length], batch.position_ids)
    assert torch.equal(whole.attention_mask[:, :, :length, :length], batch.attention_mask)
    alone = torch.eye(BLOCK, dtype=torch.bool)[length:].expand(2, 1, -1, -1)
    assert torch.equal(whole.attention_mask[:, :, length:], alone)
    assert BLOCK - whole.logits_to_keep == length - batch.logits_to_keep
    assert in_blocks(whole) is whole
