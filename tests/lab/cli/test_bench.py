"""`prefrec lab bench`: the whole command on a tiny random model, once and again."""

import json

import pytest

from command import prefrec, succeed
from tiny_run import write_shop


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Options of a run of two worker processes on made-up data."""
    folder = tmp_path_factory.mktemp("bench")
    shop = write_shop(folder / "shop")
    files = ("--source", "files", "--interactions", shop["interactions"], "--items", shop["items"])
    succeed("prepare", folder / "data", *files, "--domain", "movies", "--history-length", 4)
    of = ("--negatives", 3, "--methods", "prefrec", "--sections", "steps", "--threads", 1, "--repetitions", 1)
    return ("lab", "bench", "--quick", "--cpu", "--out", folder / "out", "--data", folder / "data", *of)


def test_measures_shows_and_goes_on(asked):
    first = prefrec(*asked)
    assert first.code == 0, first.err
    assert "steps N=3 prefrec 1/1" in first.err
    assert "about 0 s left" in first.err
    for part in ("A training step, reference pass included", "prefrec", "1.00×", "threads"):
        assert part in first.out

    again = prefrec(*asked, "--json")
    assert again.code == 0, again.err
    assert "steps N=3" not in again.err  # nothing was measured anew
    results = json.loads(again.out)
    (line,) = results["lines"]
    assert (line["summary"]["method"], line["summary"]["cpu"]["n"]) == ("prefrec", 1)
    assert line["times"] == 1
    assert line["share_square"] > 0
    out = asked[asked.index("--out") + 1]
    content = json.loads((out / "bench.json").read_text())
    assert content["results"] == results
    kinds = [r["kind"] for r in content["records"]]
    assert (kinds.count("session"), kinds.count("measurement")) == (2, 4)
    session = next(r for r in content["records"] if r["kind"] == "session")
    assert {"torch", "transformers", "trl", "threads", "processor", "commit"} <= set(session["environment"])
    assert (out / "bench.svg").is_file()
    assert (out / "bench.png").is_file()


def test_mistakes_are_one_line(asked, tmp_path):
    for options, message in (
        (("--methods", "fast"), "'fast' is unknown"),
        (("--negatives", "one"), "--negatives: Input should be a valid integer"),
        (("--negatives", "40"), "40 negatives need lists of 41 titles"),
        (("--model", "random:huge"), "expected random:tiny or random:small or random:llama-2-7b"),
    ):
        outcome = prefrec(*asked, "--out", tmp_path, *options)
        assert (outcome.code, "Traceback" in outcome.err) == (1, False)
        assert message in outcome.err
