"""Fuzz one parser, or all in turn, with atheris: `python -m reliability.fuzz NAME FOLDER SECONDS`.

The Python code of prefrec is instrumented, so that new branches are found; libraries below it are not. The process
ends with 0 after its time, and otherwise on the first input that a parser should not have ended on; that input then
lies in FOLDER/crashes.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefrec"]):
    from reliability.fuzzing import ALL
    from reliability.parsers import PARSERS, Parser, survive

LONGEST = 2000
"""Bytes of an input."""

MEMORY_MB, INPUT_S = 4096, 30
"""More than this, or longer, is a crash."""


def main(name: str, folder: Path, seconds: int, seed: int = 0) -> None:
    """Fuzz until the time is up; does not return."""
    parsers = list(PARSERS.values()) if name == ALL else [PARSERS[name]]
    corpus, crashes = folder / "corpus", folder / "crashes"
    for made in (corpus, crashes):
        made.mkdir(parents=True, exist_ok=True)
    for number, parser in enumerate(parsers):
        for n, content in enumerate(parser.seeds):
            (corpus / f"seed-{number}-{n}").write_bytes(_marked(number, parsers) + content)
    # In memory where that can be: a file is written for every input.
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))

    def ask(data: bytes) -> None:
        parser, content = _chosen(data, parsers)
        place = work / str(parsers.index(parser))
        place.mkdir(exist_ok=True)
        try:
            survive(parser, content, place)
        except BaseException as e:
            e.add_note(f"parser {parser.name!r}, input {content!r}")
            (crashes / parser.name.replace(" ", "-")).write_bytes(content)  # atheris may end before it does so
            raise

    options = {"max_total_time": seconds, "max_len": LONGEST, "rss_limit_mb": MEMORY_MB, "timeout": INPUT_S}
    options |= {"seed": seed or 1, "artifact_prefix": f"{crashes}/", "print_final_stats": 1, "verbosity": 1}
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{k}={v}" for k, v in options.items())], ask)
    atheris.Fuzz()


def _marked(number: int, parsers: list[Parser]) -> bytes:
    """The byte that chooses among several parsers."""
    return bytes([number]) if len(parsers) > 1 else b""


def _chosen(data: bytes, parsers: list[Parser]) -> tuple[Parser, bytes]:
    if len(parsers) == 1:
        return parsers[0], data
    return parsers[(data[0] if data else 0) % len(parsers)], data[1:]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(int, sys.argv[4:]))
