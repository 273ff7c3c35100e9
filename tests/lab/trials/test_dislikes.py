"""Trial E6: its arms learn from the right examples, and its curves are those of slow rankings."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from prefrec.recipe import checked_recipe
from prefrec_lab.trials import dislikes, dislikes_scores
from prefrec_lab.trials.dislikes_scores import Arms
from prefrec_lab.trials.shared import make_run
from tiny_run import write_rated_log

ROOT = Path(__file__).parents[3]
TRIAL = yaml.safe_load(dislikes.TRIAL.read_text(encoding="utf-8"))
SETTINGS = {arm: {"rate": 1e-2, "epochs": 1} for arm in TRIAL["arms"]} | {"both": {"s-dpo": 0.5, "sft-on-liked": 1.0}}
SET = {"recipe": "recipe", "sections": {}, "liked": 5, "disliked": 2}


@pytest.mark.parametrize("name", TRIAL["sets"])
def test_the_declared_recipes_are_recipes(name):
    one = TRIAL["sets"][name]
    raw = yaml.safe_load((ROOT / f"recipes/{one['recipe']}.yaml").read_text(encoding="utf-8"))
    for section, change in {**one["sections"], **TRIAL["recipe"]}.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    if name == "lastfm-counts":
        raw["data"] |= {"interactions": "log.csv", "items": "artists.csv"}
    made = checked_recipe(raw)
    assert made.data.split == "time-share"
    assert made.sft.titles == 50
    assert {*TRIAL["settings"].get(name, SETTINGS)} == {*dislikes_scores.LOSSES, "both"}


def test_the_declared_comparisons_are_of_curves_that_are_made():
    assert {*TRIAL["arms"]} == {*dislikes_scores.LOSSES}
    means = {"mean", "item mean", "other history"} | {f"mean + {arm}" for arm in dislikes_scores.WITH_MEAN}
    made = {*TRIAL["arms"], *means}
    names = [name.removeprefix("blend: ") for pairs in TRIAL["families"].values() for pair in pairs for name in pair]
    assert {*names} <= made
    assert TRIAL["lambdas"][0] == 0
    assert {*dislikes.SHOWN} <= {*TRIAL["lambdas"]}


@pytest.fixture(scope="module")
def files(recipe, tmp_path_factory) -> Path:
    """A log of 40 users with random ratings, and its recipe."""
    folder = tmp_path_factory.mktemp("disliked")
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "dropout": 0.1}}
    log = str(write_rated_log(folder))
    raw["data"] |= {"interactions": log, "split": "time-share", "windows": "all", "history_length": 4}
    raw |= {"lora": None, "sft": raw["sft"] | {"epochs": 1, "rows": 8}}
    raw["evaluate"] |= {"generate_rows": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def arms(files) -> Arms:
    sections = {**TRIAL["recipe"], "rankers": [{"kind": "blend", "parts": ["window co-occurrence"]}]}
    run = make_run(files / "recipe.yaml", files / "runs/seed-0", sections, 0, [], until="rankers")
    return Arms(run, TRIAL | {"batch": 16}, SET)


def test_states_of_the_training_part_are_those_after_its_histories(arms):
    hidden, places = arms.training
    log = arms.run.data.train_interactions
    assert len(places) == len(log) == len(hidden)
    user, items = next(log.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    length = arms.run.data.history_length
    assert len(items) > 3 * length
    for end in range(1, len(items) + 1):
        # A piece begins at a multiple of the length, so that at least so many items are known.
        start = max(0, (end - 1) // length - 1) * length
        expected = arms.states_after([items[start:end]])[0]
        assert hidden[places[user, items[end - 1]]].numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_arms_learn_from_liked_and_disliked_items_of_their_users(arms):
    log = arms.run.data.train_interactions
    ratings = {(user, item): rating for user, item, rating in log["user_id", "item_id", "rating"].iter_rows()}
    rows = arms.liked_rows()
    assert rows
    for row in rows:
        assert ratings[row.user_id, row.target] == 5
        assert {ratings[row.user_id, item] for item in row.target_first[1:]} <= {1, 2}
    some = arms.choices("s-dpo")
    ids = np.array(arms.run.data.catalogue.ids)
    for row, answers in zip(rows, some.answers, strict=True):
        assert tuple(ids[answers[answers >= 0]]) == row.target_first
    shuffled = arms.liked_rows(shuffled=True)
    assert {(r.user_id, r.target) for r in shuffled} != {(r.user_id, r.target) for r in rows}
    liked = [
        sum(rating == 5 for (user, _), rating in ratings.items() if user == own) for own in {u for u, _ in ratings}
    ]
    assert len({(r.user_id, r.target) for r in shuffled}) <= sum(liked), "each user keeps the same ratings"
    disliked = arms.choices("sft-on-disliked")
    pairs = {(row.target, item) for row in rows for item in row.target_first[1:]}
    assert {(second, first) for first, second in map(tuple, ids[disliked.answers])} <= pairs
    weighted = arms.choices("sft-weighted")
    assert len(weighted.answers) == len(rows)
    assert {*weighted.scores.flatten().tolist()} == {-4, -3, -2, -1, 0}


def test_gains_along_a_curve_are_those_of_a_slow_ranking(arms):
    kinds = dislikes_scores.rated(arms, "test")
    held_out = arms.run.data.held_out_interactions
    ratings = {(user, item): rating for user, item, rating in held_out["user_id", "item_id", "rating"].iter_rows()}
    for kind, wanted in (("liked", {5}), ("disliked", {1, 2})):
        assert {ratings[e.user_id, e.target] for e in kinds[kind].examples} == wanted
    asked = kinds["disliked"]
    heads = arms.heads({arm: SETTINGS[arm] for arm in ("s-dpo", "sft-on-liked", "sft-on-disliked")})
    directions = asked.directions(heads, {"s-dpo": 0.5})
    reward = heads["sft-on-liked"].logps(asked.hidden) - heads["sft-on-disliked"].logps(asked.hidden)
    assert directions["sft-on-disliked"] == pytest.approx(reward.numpy(), abs=1e-5)
    for start in ("sft", "blend"):
        base = asked.base(start, heads)
        found = dislikes.along(asked, base, directions["s-dpo"], [0, 2])
        for n in range(0, len(base), 9):
            free = asked.unseen[n]
            user = asked.users[n]
            seen = {*arms.run.data.train_interactions.filter(user_id=user)["item_id"]}
            assert not {*np.array(arms.run.data.catalogue.ids)[free]} & seen
            spreads = [
                np.sqrt(np.mean([np.var(scores[k][asked.unseen[k]]) for k in range(len(base))]))
                for scores in (base, directions["s-dpo"])
            ]
            for column, weight in enumerate((0, 2)):
                scores = base[n] + weight * directions["s-dpo"][n] * spreads[0] / spreads[1]
                place = 1 + int((scores[free] > scores[asked.targets[n]]).sum())
                tied = int((scores[free] == scores[asked.targets[n]]).sum()) - 1
                if not tied:
                    assert found[n, column] == pytest.approx(1 / np.log2(1 + place) if place <= 10 else 0)


def test_another_history_is_that_of_another_user():
    users = ["a", "a", "b", "c", "c", "c"]
    rows = dislikes_scores.other_rows(users, seed=0)
    assert all(users[row] != own for row, own in zip(rows, users, strict=True))
    assert {users[row] for row in rows} == {"a", "b", "c"}
    assert len({rows[3], rows[4], rows[5]}) == min(3, users.count(users[rows[3]]))


def test_validation_prints_settings_and_test_writes_the_result(files, arms, monkeypatch, tmp_path, capsys):
    declared = TRIAL | {
        "sets": {"tiny": SET},
        "settings": {"tiny": SETTINGS},
        "recipe": {**TRIAL["recipe"], "rankers": [{"kind": "blend", "parts": ["window co-occurrence"]}]},
        "grid": {"rate": [1e-2], "epochs": [1]},
        "batch": 16,
    }
    (tmp_path / "e6.yaml").write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    (tmp_path / "recipes").symlink_to(files)
    monkeypatch.setattr(dislikes, "TRIAL", tmp_path / "e6.yaml")
    monkeypatch.setattr(dislikes, "RESULT", tmp_path / "73.json")
    monkeypatch.setattr(dislikes, "ROOT", tmp_path)
    monkeypatch.setattr("prefrec_lab.trials.shared.ANSWERS", tmp_path)
    command = ["dislikes.py", "tiny", str(arms.run.folder), "--split"]
    monkeypatch.setattr(sys, "argv", [*command, "validation"])
    dislikes.main()
    assert "sft-on-disliked: {epochs: 1, rate: 0.01}" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "test"])
    dislikes.main()
    kept = pl.read_parquet(tmp_path / "e6-tiny-test-0.parquet")
    kept.write_parquet(tmp_path / "e6-tiny-test-1.parquet")
    auc = pl.read_parquet(tmp_path / "e6-tiny-auc-0.parquet")
    assert auc["auc"].is_between(0, 1).all()
    auc.write_parquet(tmp_path / "e6-tiny-auc-1.parquet")
    monkeypatch.setattr(sys, "argv", ["dislikes.py", "--table"])
    dislikes.main()
    result = json.loads((tmp_path / "73.json").read_text(encoding="utf-8"))
    assert result["n"].endswith("2 seeds; 16 comparisons")
    curves, primary, *_ = result["tables"]
    gains = {row[1]: row for row in curves["rows"]}
    assert {*gains} == {
        name for family in ("primary", "secondary") for pair in TRIAL["families"][family] for name in pair
    }
    disliked = kept.filter(kind="disliked", ranker="s-dpo")["gains"].to_numpy().mean(axis=0)
    assert gains["s-dpo"][3] == f"{disliked[0]:.4f}"
    first = float(gains["s-dpo"][5]) - float(gains["sft-on-liked"][5])
    assert float(primary["rows"][0][1].split()[0].replace("−", "-")) == pytest.approx(first, abs=2e-4)
