"""Hypothesis: bytes of any kind, and good inputs that are damaged, for each of the parsers."""

from pathlib import Path

from hypothesis import strategies as st

from drawn import try_drawn
from reliability.parsers import Parser, survive

_SHARP = [
    b"\0", b'"', b"'", b"\\", b"\r", b"\n", b"\t", b"::", b"[", b"{", b"{{", b"{%", b"}}", b"%}", b"-1", b"NaN",
    b"1e999", b"null", b"true", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\xc3\xa9", b"9" * 30, b"__class__",
    b"!!python", b"&a", b"*a",
]  # fmt: skip
"""Pieces that mean something in one of the formats."""


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good input with up to four places overwritten, cut out or doubled."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 20)))
        new = draw(st.binary(max_size=8) | st.sampled_from(_SHARP) | st.just(content[start:end] * 2))
        content = content[:start] + new + content[end:]
    return content


def hold(parser: Parser, folder: Path, examples: int, random: int | None = None) -> tuple[int, int]:
    """Give a parser as many inputs (`try_drawn`); how many it read and how many it refused."""
    counts = [0, 0]

    def ask(content: bytes) -> None:
        counts[not survive(parser, content, folder)] += 1

    strategy = damaged(parser.seeds) | st.binary(max_size=200) | st.text(max_size=60).map(lambda t: t.encode())
    try_drawn(ask, strategy, examples, random)
    return counts[0], counts[1]
