"""`prefrec evaluate-adapters`: lists, and every title that was not seen."""

import json

from command import succeed

ROWS = 5


def test_adapters_and_their_base_are_asked_as_in_training(place, tmp_path):
    """Lists, the bare base included: no option names the model."""

    def metrics(*options):
        few = ("--rows", ROWS, "--generate-rows", 0, "--out", tmp_path, "--json")
        adapter = ("--adapter", f"s-dpo={place.s_dpo / 'adapter'}")
        found = json.loads(succeed("evaluate-adapters", place.data, *few, *adapter, *options))["evaluation"][
            "metrics"
        ]
        return {name: found[name] for name in ("zero-shot", "s-dpo")}

    assert metrics() == metrics(*place.asked)


def test_lists_and_the_whole_catalogue_in_one_table(place, tmp_path):
    """On candidate sets and in full ranking, every model is compared with the best baseline."""
    chosen = ("--adapter", f"s-dpo={place.s_dpo / 'adapter'}", "--out", tmp_path)
    asked = (*chosen, *place.asked, "--full-rows", 12, "--generate-rows", 0)
    out = " ".join(succeed("evaluate-adapters", place.data, *asked).split())
    told = json.loads((tmp_path / "metrics.json").read_text())
    full = told["full_catalogue"]
    assert (told["evaluation"]["n"], full["n"]) == (40, 40)
    assert {full["metrics"][name]["hr@10"]["n"] for name in ("s-dpo", "zero-shot")} == {12}
    for block in (told["evaluation"], full):
        pairs = {(c["ranker"], c["against"]) for c in block["comparisons"]}
        best = block["best_reference"]
        assert pairs == {("s-dpo", "zero-shot"), ("zero-shot", best), ("s-dpo", best)}
        assert f"Models are compared with {best}, the baseline" in out
    assert "full ranking: n = 40 examples of 40 users" in out
    assert out.count("By user: ") == 1
    assert {name: spread["users"] for name, spread in told["by_user"].items()}.items() >= {"s-dpo": 12}.items()
    assert out.startswith("Audit:")  # above the first table
    assert next(iter(told)) == "verdict"
    few = ("--rows", ROWS, "--no-zero-shot", "--full-rows", 0)
    assert "full ranking" not in succeed("evaluate-adapters", place.data, *few, "--out", tmp_path)
