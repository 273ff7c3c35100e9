"""Users that are left out, layers that are left out, and the whole studies."""

from collections import Counter

import pytest

from prefrec.errors import ConfigError
from prefrec.recipe import Recipe
from prefrec_lab.studies import sizes
from prefrec_lab.studies.sizes import DATA_SIZE, MODEL_SIZE, data_sizes, some_users
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


@pytest.fixture
def without_sft(base):
    raw = base.model_dump(mode="json")
    return Recipe.model_validate(raw | {"sft": None, "evaluate": raw["evaluate"] | {"zero_shot": True}})


def test_a_recipe_without_sft_has_no_rows_of_sft_to_vary(without_sft):
    with pytest.raises(ConfigError, match=r"^sft: .*no SFT: add sft$"):
        data_sizes(without_sft)


def test_the_start_is_refused_before_training_if_it_is_not_evaluated(without_sft, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "run_recipe", None)
    evaluate = without_sft.evaluate.model_copy(update={"zero_shot": False})
    with pytest.raises(ConfigError, match=r"^evaluate\.zero_shot: .*set it to true, or add sft$"):
        carry_out(MODEL_SIZE, without_sft.model_copy(update={"evaluate": evaluate}), [0], tmp_path)


def test_facts_name_the_start(without_sft, tmp_path, monkeypatch):
    for size in ("2", "4", "8"):
        monkeypatch.delitem(sizes.LAYERS, size)
    summary = carry_out(MODEL_SIZE, without_sft, [0], tmp_path)
    assert any(f.startswith("zero-shot. HR@1: the largest difference from all") for f in summary["facts"])
    assert not any(f.startswith("SFT.") for f in summary["facts"])
