"""prefrec.training.batch: rows per pass, by their tokens and the memory that is free."""

import pytest

from prefrec.training.batch import BYTES, TOKENS, room_for, rows_per_pass
from tiny import tiny_llama

PLENTY = 1e9


@pytest.mark.parametrize(
    ("per_step", "tokens", "room", "rows"),
    [
        (128, 400, PLENTY, 16),  # 8 rows would have 3,200 tokens
        (128, 500, PLENTY, 8),
        (128, 2000, PLENTY, 4),
        (16, 50, PLENTY, 16),  # a whole step
        (24, 50, PLENTY, 8),  # 16 would not divide it
        (128, 400, 4000, 8),  # 16 would not fit
        (128, 400, -1, 4),  # the least, whether they fit or not
    ],
)
def test_rows_are_doubled_up_to_the_tokens(per_step, tokens, room, rows):
    assert rows_per_pass(4, per_step, tokens, room) == rows
    assert per_step % rows == 0


def test_room_is_half_of_what_the_weights_leave():
    model = tiny_llama()
    text, weights = model.config, 4 * sum(p.numel() for p in model.parameters())
    per_token = BYTES * text.num_hidden_layers * (text.hidden_size + text.intermediate_size)
    assert room_for(model, weights + 2 * TOKENS * per_token) == pytest.approx(TOKENS)
    assert room_for(model, 0) < 0
    assert room_for(model.to("meta"), 2 * TOKENS * per_token) == pytest.approx(TOKENS), "weights that are there"
