"""Alignment rows from ratings and impressions: which rows, what is mixed in, what is refused and when."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prefrec.errors import DataError
from prefrec.losses import LOSSES, having, preference_loss
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.sections import AlignSection
from prefrec.stages.inputs import RunInputs
from prefrec.stages.negatives import answer_scores, log_rows, log_validation_rows
from prefrec.stages.train import train_align
from prefrec.stages.training_rows import alignment_pool, alignment_rows, validation_rows
from tiny_run import RATED


def rated_loss(policy_logps, ref_logps, beta, *, scores):
    return preference_loss(policy_logps, ref_logps, beta, margin=-scores)


@having(needs_liked=True)
def graded_loss(policy_logps, ref_logps, beta, *, scores):
    return preference_loss(policy_logps, ref_logps, beta, margin=-scores)


@pytest.fixture(autouse=True)
def losses_of_ratings(monkeypatch):
    """Losses that take ratings, as those of other packages may."""
    monkeypatch.setitem(LOSSES, "rated", rated_loss)
    monkeypatch.setitem(LOSSES, "graded", graded_loss)


def taken(log: pl.DataFrame) -> dict[str, dict[str, float]]:
    return {u: dict(own.select("item_id", "rating").iter_rows()) for (u,), own in log.group_by("user_id")}


def test_rows_are_of_the_training_part(rated):
    section, of = AlignSection(**RATED), taken(rated.train_interactions)
    rows = log_rows(rated, section, 0)
    liked = {(user, item) for user, items in of.items() for item, r in items.items() if r == 5}
    assert {(e.user_id, e.target) for e in rows} <= liked
    for e in rows:
        ratings = [of[e.user_id][i] for i in e.candidates]
        assert 1 <= sum(r <= 2 for r in ratings) <= 3
        assert [i for i, r in zip(e.candidates, ratings, strict=True) if r > 2] == [e.target]
        assert len(e.history) <= 4
    assert len({len(e.candidates) for e in rows}) > 1  # rows with fewer rejected items are kept
    drawn = np.random.default_rng((0, 1)).permutation(len(rows))[:16]
    assert alignment_rows(rated, section, 0) == [rows[i] for i in drawn]
    assert log_rows(rated, section, 1) != rows
    latest = alignment_pool(rated, section.model_copy(update={"latest_per_user": 1}))
    assert len({e.user_id for e in latest}) == len(latest) == len({e.user_id for e in rows})


@pytest.mark.parametrize("how", ["rated", "impressions"])
def test_sampled_ones_are_items_that_the_log_does_not_tell_of(rated, how):
    plain = AlignSection(**RATED | {"negatives_from": how, "num_negatives": 2})
    mixed = AlignSection(**RATED | {"negatives_from": how, "num_negatives": 6, "sampled_negatives": 4})
    before, rows = log_rows(rated, plain, 0), log_rows(rated, mixed, 0)
    assert [(e.user_id, e.history, e.target) for e in rows] == [(e.user_id, e.history, e.target) for e in before]
    of = taken(rated.train_interactions)
    shown = dict(rated.train_interactions.group_by("user_id").agg(pl.col("impressions").explode()).iter_rows())
    for old, new in zip(before, rows, strict=True):
        sampled = set(new.candidates) - set(old.candidates)
        assert (len(new.candidates), len(sampled)) == (len(old.candidates) + 4, 4)
        assert not sampled & ({*of[new.user_id]} | {*shown[new.user_id]})
    assert len({e.target_index for e in rows}) == 7


def test_validation_rows_are_of_validation_users_after_the_cut(rated):
    section = AlignSection(**RATED | {"num_negatives": 1, "eval_rows": 5})
    rows = validation_rows(rated, section, 0)
    assert rows == log_validation_rows(rated, section, 0)
    held_out, users = taken(rated.held_out_interactions), {e.user_id for e in rated.validation}
    assert 0 < len(rows) <= 5
    for e in rows:
        assert e.user_id in users
        (rating,) = [held_out[e.user_id][i] for i in e.candidates if i != e.target]
        assert rating <= 2.0
        assert len(e.history) == 4


@pytest.mark.parametrize(
    "how",
    [{"negatives_from": "impressions", "sampled_negatives": 1}, {"loss": "graded"}, {"loss": "rated"}],
    ids=["impressions", "graded", "rated"],
)
def test_a_model_is_aligned(rated_recipe, rated, tmp_path, how):
    section = AlignSection(**RATED | how | {"eval_rows": 4, "eval_steps": 2, "num_negatives": 2})
    train_align(RunInputs(rated, "", rated_recipe.model, rated_recipe.lora, 0), section, None, tmp_path)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert '"eval_loss"' in (tmp_path / "log.json").read_text()


def test_data_that_tell_of_none_are_refused_before_training(recipe, data, tmp_path):
    raw = recipe.model_dump(mode="json")
    for how, message in (
        ("rated", "rated negatives need ratings, but the log has none"),
        ("impressions", "negatives from impressions need items that were shown"),
    ):
        wrong = Recipe.model_validate(raw | {"align": [raw["align"][1] | {"negatives_from": how}]})
        with pytest.raises(DataError, match=message):
            run_recipe(wrong, tmp_path / "run")
        assert not (tmp_path / "run" / "sft").exists()


def test_scores_of_answers_are_the_users_ratings(rated):
    """Sampled items, which the user did not rate, count as rated lowest; held-out ratings are for held-out rows."""
    section = AlignSection(**RATED | {"loss": "rated", "num_negatives": 4, "sampled_negatives": 2})
    rows, of = log_rows(rated, section, 0), taken(rated.train_interactions)
    for row, scores in zip(rows, answer_scores(rows, rated, section), strict=True):
        answers = [row.target, *(i for i in row.candidates if i != row.target)]
        assert scores == [of[row.user_id].get(i, 1.0) for i in answers]
        assert scores[0] == 5
    later = log_validation_rows(rated, AlignSection(**RATED | {"num_negatives": 1, "eval_rows": 5}), 0)
    assert {s[0] for s in answer_scores(later, rated, section)} == {1.0}
    assert {s[0] for s in answer_scores(later, rated, section, held_out=True)} == {5.0}
    assert answer_scores(rows, rated, AlignSection(**RATED)) is None


def test_a_loss_of_levels_gets_all_liked_items_of_a_block_and_the_disliked_ones(rated):
    section, of = AlignSection(**RATED | {"loss": "graded", "num_negatives": 9}), taken(rated.train_interactions)
    rows = log_rows(rated, section, 0)
    assert rows
    levels = [sorted(of[e.user_id][i] for i in e.candidates) for e in rows]
    assert all(row[0] <= 2 < 5 == row[-1] for row in levels)
    assert any(row[-2] == 5 for row in levels)
    assert not any(2 < rating < 5 for row in levels for rating in row)


def test_losses_that_need_ratings_are_told_before_training(data, rated):
    section = AlignSection(**RATED | {"loss": "rated", "negatives_from": "uniform"})
    assert len(alignment_rows(rated, section, 0)) == 16
    for other in (data, replace(rated, protocol=rated.protocol | {"rating_counts": True})):
        with pytest.raises(DataError, match=r"align\.s-dpo\.loss: rated needs ratings above 0, but the log has none"):
            alignment_rows(other, section, 0)
