"""`prefrec evaluate`: lists, and every title that was not seen."""

import json

import pytest

from command import succeed

ROWS = 5


@pytest.fixture
def evaluate(place, tmp_path):
    def run(*options) -> dict:
        chosen = ("--adapter", f"s-dpo={place.s_dpo / 'adapter'}", "--rows", ROWS, "--out", tmp_path)
        printed = succeed(
            "evaluate", place.data, "--full-rows", ROWS, "--no-zero-shot", *chosen, *place.asked, "--json", *options
        )
        assert json.loads(printed) == json.loads((tmp_path / "metrics.json").read_text())
        return json.loads(printed)["full_catalogue"]

    return run


def test_adapters_and_their_base_are_asked_as_in_training(place, tmp_path):
    """Lists, the bare base included: no option names the model."""

    def metrics(*options):
        few = ("--rows", ROWS, "--out", tmp_path, "--adapter", f"s-dpo={place.s_dpo / 'adapter'}", "--json")
        found = json.loads(succeed("evaluate", place.data, *few, *options))["evaluation"]["metrics"]
        return {name: found[name] for name in ("zero-shot", "s-dpo")}

    assert metrics() == metrics(*place.asked)


def test_lists_and_the_whole_catalogue_in_one_table(place, tmp_path):
    """Both blocks, every model against the best reference row, groups of targets; in 100 columns."""
    chosen = ("--adapter", f"s-dpo={place.s_dpo / 'adapter'}", "--out", tmp_path)
    out = succeed("evaluate", place.data, *chosen, *place.asked, "--full-rows", 12)
    told = json.loads((tmp_path / "metrics.json").read_text())
    full = told["full_catalogue"]
    assert (told["evaluation"]["n"], full["n"]) == (40, 40)
    assert {full["metrics"][name]["hr@10"]["n"] for name in ("s-dpo", "zero-shot")} == {12}
    for block in (told["evaluation"], full):
        pairs = {(c["ranker"], c["against"]) for c in block["comparisons"]}
        best = block["best_reference"]
        assert pairs == {("s-dpo", "zero-shot"), ("zero-shot", best), ("s-dpo", best)}
        assert f"comparisons (3 pairs, all metrics) on the same {block['n']} examples" in " ".join(out.split())
        assert f"Models are compared with {best}, the baseline" in " ".join(out.split())
    assert "full ranking: n = 40 examples of 40 users" in " ".join(out.split())
    first = next(line for line in out.splitlines() if line.strip())
    assert first.startswith("Audit:")  # above the first table
    assert next(iter(told)) == "verdict"
    assert " ".join(out.split()).startswith(" ".join(told["verdict"].split()[:8]))
    assert ("warm: the target occurs" in out) == (len(told["evaluation"]["groups"]) == 2)
    assert "full ranking" not in succeed("evaluate", place.data, "--out", tmp_path, "--full-rows", 0)
    assert json.loads((tmp_path / "metrics.json").read_text())["full_catalogue"] is None
