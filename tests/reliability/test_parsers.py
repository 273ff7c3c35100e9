"""No bytes make a parser end on anything but a value or a PrefrecError."""

import pytest

from prefrec.errors import DataError
from reliability.parsers import PARSERS, Parser, survive
from reliability.properties import hold

EXAMPLES = 60


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS.keys())
def test_good_input_is_read_and_any_bytes_are_read_or_refused(parser, tmp_path):
    assert survive(parser, parser.seeds[0], tmp_path)
    read, refused = hold(parser, tmp_path, EXAMPLES)
    assert read + refused >= EXAMPLES / 2


def test_a_parser_that_breaks_is_found(tmp_path):
    def read(path):
        if b"\xff" in path.read_bytes():
            raise KeyError("title")
        raise DataError("refused")

    with pytest.raises(KeyError):
        hold(Parser("broken", "x", (b"ab",), read, {}), tmp_path, 300)
