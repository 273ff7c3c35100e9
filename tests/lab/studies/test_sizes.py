"""Users that are left out, layers that are left out, and the whole studies."""

from collections import Counter

import pytest

from prefrec_lab.studies import sizes
from prefrec_lab.studies.carry_out import carry_out
from prefrec_lab.studies.sizes import DATA_SIZE, MODEL_SIZE, data_sizes, model_sizes, some_users


def test_users_are_whole_and_no_more_than_needed(data):
    counts = Counter(e.user_id for e in data.train)
    some = some_users(data, 50, 0)
    kept = Counter(e.user_id for e in some.train)
    assert all(counts[user] == n for user, n in kept.items())
    assert 50 <= kept.total() < 50 + max(counts.values())
    assert set(some.train_interactions["user_id"]) == set(kept)
    assert (some.validation, some.test) == (data.validation, data.test)


def test_other_seeds_take_other_users_and_a_second_call_none(data):
    some = some_users(data, 50, 0)
    assert some_users(some, 50, 0).train == some.train
    assert some_users(data, 50, 1).train != some.train
    assert some_users(data, None, 0) is data


def test_small_data_are_read_more_often(base):
    found = {size: (recipe.sft.epochs, rows) for size, (recipe, rows) in data_sizes(base).items()}
    assert found == {"1k": (30, 1000), "10k": (10, 10_000), "all": (1, None)}


def test_layers_are_all_that_differs(base):
    for size, (recipe, rows) in model_sizes(base).items():
        assert recipe.model.layers == (None if size == "all" else int(size))
        assert recipe.model.model_dump(exclude={"layers"}) == base.model.model_dump(exclude={"layers"})
        assert recipe.model_dump(exclude={"model"}) == base.model_dump(exclude={"model"})
        assert rows is None


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
