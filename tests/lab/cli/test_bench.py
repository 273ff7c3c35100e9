"""`prefrec lab bench`: the whole command on a tiny random model, once and again."""

import json

import pytest

from command import prefrec, succeed
from tiny_run import write_shop

WAYS = ("published", "prefrec")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Options of a run of three worker processes on made-up data."""
    folder = tmp_path_factory.mktemp("bench")
    shop = write_shop(folder / "shop")
    files = ("--source", "files", "--interactions", shop["interactions"], "--items", shop["items"])
    succeed("prepare", folder / "data", *files, "--domain", "movies", "--history-length", 4)
    of = ("--negatives", "3", "--methods", ",".join(WAYS), "--sections", "steps", "--threads", 1, "--cpu")
    return ("lab", "bench", "--quick", "--out", folder / "out", "--data", folder / "data", *of)


def test_measures_shows_and_goes_on(asked):
    first = prefrec(*asked)
    assert first.code == 0, first.err
    assert "steps N=3 published 2/2" in first.err
    assert "about 0 s left" in first.err
    for part in ("A training step, reference pass included", "published", "prefrec", "1.00×", "threads"):
        assert part in first.out

    again = prefrec(*asked, "--json")
    assert again.code == 0, again.err
    assert "steps N=3" not in again.err  # nothing was measured anew
    results = json.loads(again.out)
    assert [(line["summary"]["method"], line["summary"]["cpu"]["n"]) for line in results["lines"]] == [
        (way, 2) for way in WAYS
    ]
    slow, fast = results["lines"]
    assert slow["times"] == slow["summary"]["cpu"]["median"] / fast["summary"]["cpu"]["median"]
    assert fast["share_square"] > 0
    assert results["disagreement"] < 1e-3

    out = asked[asked.index("--out") + 1]
    content = json.loads((out / "bench.json").read_text())
    assert content["results"] == results
    kinds = [r["kind"] for r in content["records"]]
    assert (kinds.count("session"), kinds.count("measurement")) == (2, 9)
    session = next(r for r in content["records"] if r["kind"] == "session")
    assert {"torch", "transformers", "trl", "threads", "processor", "commit"} <= set(session["environment"])
    assert (out / "bench.svg").is_file()
    assert (out / "bench.png").is_file()


def test_flops_and_their_share_of_a_peak(asked):
    """What a GPU is measured by, on a tiny model in bfloat16: tokens and FLOPs a second, MFU, peak memory."""
    at = asked.index("--out") + 1
    options = (*asked[:at], asked[at].with_name("gpu"), *asked[at + 1 :], "--methods", "prefrec", "--repetitions", 1)
    shown = prefrec(*options, "--dtype", "bfloat16", "--peak-tflops", 2)
    assert shown.code == 0, shown.err
    for part in ("tokens/s", "TFLOP/s", "MFU", "peak GiB"):
        assert part in shown.out
    (line,) = json.loads(prefrec(*options, "--dtype", "bfloat16", "--peak-tflops", 1, "--json").out)["lines"]
    assert line["summary"]["peak"] > 0
    assert 0 < line["utilisation"] == line["flops"] / 1e12


def test_mistakes_are_one_line(asked, tmp_path):
    for options, message in (
        (("--methods", "fast"), "'fast' is unknown"),
        (("--negatives", "one"), "--negatives: Input should be a valid integer"),
        (("--negatives", "40"), "40 negatives need lists of 41 titles"),
        (("--model", "random:huge"), "expected random:tiny or random:small or random:llama-2-7b"),
    ):
        outcome = prefrec(*asked, "--out", tmp_path, *options)
        assert outcome.code == 1
        assert message in outcome.err
        assert "Traceback" not in outcome.err
