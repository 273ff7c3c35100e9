"""Fuzz all parsers with atheris: `python -m reliability.fuzz FOLDER SECONDS`. An input's first byte chooses one.

The Python code of prefrec is instrumented, so that new branches are found; libraries below it are not. The process
ends with 0 after its time, and otherwise on the first input that a parser should not have ended on; that input then
lies in FOLDER/crashes.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefrec"]):
    from reliability.parsers import PARSERS, survive

LONGEST = 2000
"""Bytes of an input."""

MEMORY_MB, INPUT_S = 4096, 30
"""More than this, or longer, is a crash."""


def main(folder: Path, seconds: int, seed: int = 1) -> None:
    """Fuzz until the time is up; does not return."""
    parsers = list(PARSERS.values())
    corpus, crashes = folder / "corpus", folder / "crashes"
    for made in (corpus, crashes):
        made.mkdir(parents=True, exist_ok=True)
    for number, parser in enumerate(parsers):
        for n, content in enumerate(parser.seeds):
            (corpus / f"seed-{number}-{n}").write_bytes(bytes([number]) + content)
    # In memory where that can be: a file is written for every input.
    memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))

    def ask(data: bytes) -> None:
        number, content = (data[0] if data else 0) % len(parsers), data[1:]
        parser, place = parsers[number], work / str(number)
        place.mkdir(exist_ok=True)
        try:
            survive(parser, content, place)
        except BaseException as e:
            e.add_note(f"parser {parser.name!r}, input {content!r}")
            (crashes / parser.name.replace(" ", "-")).write_bytes(content)  # atheris may end before it does so
            raise

    options = {"max_total_time": seconds, "max_len": LONGEST, "rss_limit_mb": MEMORY_MB, "timeout": INPUT_S}
    options |= {"seed": seed, "artifact_prefix": f"{crashes}/", "print_final_stats": 1, "verbosity": 1}
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{k}={v}" for k, v in options.items())], ask)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
