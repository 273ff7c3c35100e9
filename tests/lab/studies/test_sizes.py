"""Users that are left out, layers that are left out, and the whole studies."""

from collections import Counter

import pytest

from prefrec_lab.studies import sizes
from prefrec_lab.studies.sizes import DATA_SIZE, MODEL_SIZE, some_users
from prefrec_lab.study_tools.carry_out import carry_out


def test_users_are_whole_and_no_more_than_needed(data):
    counts, some = Counter(e.user_id for e in data.train), some_users(data, 50, 0)
    kept = Counter(e.user_id for e in some.train)
    assert all(counts[user] == n for user, n in kept.items())
    assert 50 <= kept.total() < 50 + max(counts.values())
    assert set(some.train_interactions["user_id"]) == set(kept)
    assert (some.validation, some.test) == (data.validation, data.test)


@pytest.mark.parametrize(("study", "varied"), [(DATA_SIZE, "ROWS"), (MODEL_SIZE, "LAYERS")])
def test_the_whole_study(study, varied, base, tmp_path, monkeypatch):
    sizes_of_test = {"ROWS": {"1k": (40, 1), "all": (None, 1)}, "LAYERS": {"1": 1, "all": None}}[varied]
    sizes_of_study = getattr(sizes, varied)
    for size in [*sizes_of_study]:
        monkeypatch.delitem(sizes_of_study, size)
    for size, value in sizes_of_test.items():
        monkeypatch.setitem(sizes_of_study, size, value)
    summary = carry_out(study, base, [0], tmp_path)
    rows = {(r["size"], r["variant"]) for r in summary["tables"]["table"] if r["quantity"] == "hr@1"}
    assert rows >= {(size, ranker) for size in sizes_of_test for ranker in ("popularity", "sft", "s-dpo")}
    assert any(f.startswith("SFT. HR@1: the largest difference from all") for f in summary["facts"])
    assert any(f.startswith("all. HR@1: the largest difference from popularity") for f in summary["facts"])
    assert any(f.startswith("all. HR@1: the largest difference from SFT") for f in summary["facts"])
