"""A ranker of the run as the reference of an alignment, and as the frozen ranker of joint_softmax."""

from dataclasses import replace

import numpy as np
import pytest

from prefrec.data import frame_to_examples
from prefrec.data.parquet import read_parquet
from prefrec.errors import ConfigError
from prefrec.export.ranker import export_ranker
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers.blend import FOLDS, user_folds
from prefrec.recipe import Recipe, checked_recipe
from prefrec.recommender import Recommender
from prefrec.stages import train
from prefrec.stages.negatives import NEGATIVES_FILE
from prefrec.stages.training_rows import validation_rows

COUNTS = ["co-occurrence", "window co-occurrence"]
BLEND = {"kind": "blend", "name": "counts", "parts": COUNTS}


@pytest.fixture(scope="module")
def items_recipe(recipe) -> Recipe:
    """Item-ID tokens, aligned against a blend of counts and jointly with it; a blend has both as parts; all refit."""
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "learning_rate": 0.02}}
    raw["sft"] |= {"rows": None, "epochs": 1, "learning_rate": 1e-3}
    short = raw["align"][1] | {"num_negatives": 3, "rows": 12, "epochs": 1, "eval_rows": 5, "reference": "counts"}
    against = short | {"negatives_from": "ranker", "miner": "counts", "beta": 0.5}
    joint = short | {"name": "joint", "loss": "joint_softmax", "negatives_from": "uniform", "beta": 1.0}
    raw |= {"lora": None, "align": [against, joint], "refit": True}
    raw["rankers"] = [BLEND, {"kind": "blend", "parts": [*COUNTS, "s-dpo reward", "joint"]}]
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0, "references": ["random"], "rows": 8}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def trainers(items_recipe, tmp_path_factory):
    """Folder of the run, and name of each stage → its trainer. To be read only."""
    folder, found = tmp_path_factory.mktemp("reference") / "run", {}
    whole = train.train_to_weights

    def kept(trainer, out):
        found.setdefault(out.name, trainer)  # the first is that of the training log
        return whole(trainer, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_to_weights", kept)
        run_recipe(items_recipe, folder)
    return folder, found


def rows_of(folder):
    """The training examples of an alignment, with their negatives."""
    return frame_to_examples(read_parquet(folder / NEGATIVES_FILE))


def log_probs(ranker, rows, catalogue):
    """The slow twin: the softmax over the whole catalogue, row by row, of the target and the other candidates."""
    found = []
    for e in rows:
        scores = ranker.score([replace(e, candidates=tuple(catalogue.ids))])[0]
        probs = np.exp(scores - scores.max())
        probs /= probs.sum()
        answers = [e.target, *(i for i in e.candidates if i != e.target)]
        found.append([np.log(probs[catalogue.index[i]]) for i in answers])
    return found


def assert_among(found, want):
    """The target's number comes first, and the others are of some of the other candidates."""
    assert len(found) == len(want)
    for row, all_of_row in zip(found, want, strict=True):
        assert len(row) == 4
        assert row[0] == pytest.approx(all_of_row[0], abs=1e-4)
        assert all(np.abs(np.array(all_of_row[1:]) - number).min() < 1e-4 for number in row[1:])


def test_training_examples_are_compared_with_counts_of_other_users(trainers):
    folder, found = trainers
    run = open_run(folder)
    stage = run.plan.logs[0].on_log("counts")
    sdpo = found["s-dpo"].train_dataset
    rows = rows_of(folder / "align/s-dpo")
    assert_among(sdpo.ref_logps, log_probs(stage.load_for_training(4), rows, run.data.catalogue))
    assert len(set(user_folds(rows, FOLDS))) > 1
    assert not [*folder.glob("reference/*")]  # none of the starting model were computed


def test_validation_examples_are_compared_with_what_the_ranker_learnt_from_other_users(trainers, items_recipe):
    folder, found = trainers
    run = open_run(folder)
    rows = validation_rows(run.data, items_recipe.align[0], 0)
    out_of_fold = run.plan.logs[0].on_log("counts").out_of_fold.load(4)
    assert_among(found["s-dpo"].eval_dataset.ref_logps, log_probs(out_of_fold, rows, run.data.catalogue))


def test_joint_softmax_adds_the_log_probs_of_the_ranker(trainers):
    folder, found = trainers
    run, joint = open_run(folder), found["joint"].train_dataset
    rows = rows_of(folder / "align/joint")
    ranker = run.plan.logs[0].on_log("counts").load_for_training(4)
    assert_among(joint.scores, log_probs(ranker, rows, run.data.catalogue))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_reward_is_that_beyond_the_ranker(trainers, split):
    run = open_run(trainers[0])
    rows = [replace(e, candidates=tuple(run.data.catalogue.ids)) for e in run.data.examples(split, 6)]
    plan = run.plan.logs[0 if split == "validation" else 1]
    policy = plan.on_log("s-dpo").load(4).score(rows)
    counts = plan.on_log("counts")
    reference = (counts.out_of_fold if split == "validation" else counts).load(4).score(rows)
    part = next(p for p in run.stage("blend").on(split).load(4).parts if p.name == "s-dpo reward")
    learnt = {*plan.inputs.data.train_interactions["item_id"]}
    known = np.array([i in learnt for i in run.data.catalogue.ids])
    np.testing.assert_allclose(part.score(rows)[:, known], 0.5 * (policy - reference)[:, known], rtol=1e-4, atol=1e-4)


def test_a_blend_with_this_reward_answers_and_is_exported(trainers, tmp_path):
    folder, _ = trainers
    ranked = Recommender.from_run(folder, ranker="blend").recommend(["i3", "i4"], k=3)
    export_ranker(open_run(folder), "blend", tmp_path / "out")
    assert ranked == Recommender.from_pretrained(tmp_path / "out").recommend(["i3", "i4"], k=3)


def test_the_key_changes_with_the_reference(items_recipe):
    plain, other = (items_recipe.align[0].model_copy(update={"reference": name}) for name in (None, "blend"))
    assert "reference" not in plain.decisive()
    assert other.decisive() != items_recipe.align[0].decisive()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "coutns"}, "there is no 'coutns' in `rankers`: add it there; did you mean counts"),
        ({"reference": "blend"}, r"align\.s-dpo\.reference: blend depends on s-dpo"),
        ({"loss": "bpr"}, "bpr has no reference"),
        ({"loss": "joint_softmax", "reference": None}, "joint_softmax needs the name of a ranker"),
    ],
)
def test_a_reference_that_cannot_be_queried(items_recipe, changes, message):
    raw = items_recipe.model_dump(mode="json")
    with pytest.raises(ConfigError, match=message):
        checked_recipe(raw | {"align": [raw["align"][0] | changes, raw["align"][1]]})
