"""Alignment with negatives of its own choice: the rows are drawn once."""

import math
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from prefrec.data import frame_to_examples
from prefrec.errors import ConfigError
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.rankers import CatalogueRanker
from prefrec.recipe import Recipe, checked_recipe
from prefrec.runs.stage import stage_key
from prefrec.sections import AlignSection
from prefrec.stages import negatives
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from prefrec.stages.negatives import NEGATIVES_FILE, answer_scores, negative_rows, rows_with_room
from prefrec.stages.train import train_align
from prefrec.stages.training_rows import alignment_rows
from prefrec.training.negatives import false_negatives, resample_negatives

BLEND = {"kind": "blend", "parts": ["s-dpo", "popularity"]}
SASREC = {"kind": "sequential", "model": "SASRec", "epochs": 2, "hidden_size": 8}


@pytest.fixture
def section(recipe):
    short = recipe.align[1].model_dump() | {"rows": 16, "epochs": 1}
    return lambda **changes: AlignSection.model_validate(short | changes)


@pytest.fixture
def inputs(recipe, data):
    return RunInputs(data, "k", recipe.model, recipe.lora, 0)


def test_the_key_changes_with_what_matters():
    sections = [{"negatives_from": h, "negatives_pool": n} for h in ("list", "in-batch", "hard") for n in (64, 99)]
    keys = [stage_key(align=AlignSection(**section).decisive()) for section in sections]
    assert [a == b for a, b in zip(keys[::2], keys[1::2], strict=True)] == [True, True, False]
    plain, other = (AlignSection(loss="recpo", **margin).decisive() for margin in ({}, {"margin": 2.0}))
    assert ("margin" in plain, stage_key(align=plain) == stage_key(align=other)) == (False, False)
    assert stage_key(align=AlignSection(negatives_from="hard", miner="SASRec").decisive()) not in keys


@pytest.mark.parametrize("how", ["uniform", "popularity", "in-batch"])
def test_log_q_is_the_log_of_how_often_an_item_is_drawn(data, section, how):
    rows, one = alignment_rows(data, section(), 0), section(loss="softmax_logq", negatives_from=how)
    drawn = resample_negatives(rows, data, how, seed=0)
    taken = Counter(data.train_interactions["item_id"].to_list())
    targets = Counter(e.target for e in rows)
    weight = {"uniform": lambda i: 1, "popularity": lambda i: 1 + taken[i], "in-batch": lambda i: targets[i]}[how]
    for row, scores in zip(drawn, answer_scores(drawn, data, one), strict=True):
        answers = [row.target, *(i for i in row.candidates if i != row.target)]
        assert scores == pytest.approx([math.log(weight(i)) for i in answers])
    assert {s for scores in answer_scores(drawn, data, one, held_out=True) for s in scores} == {0.0}


def test_the_share_of_negatives_that_the_user_takes_later_is_printed(inputs, section, tmp_path, capsys):
    """The rows of one user, and lists of everything: the rate is that of the items after each target."""
    inputs = replace(inputs, data=replace(inputs.data, held_out_interactions=None))
    rows = [e for e in inputs.data.train if e.user_id == inputs.data.train[0].user_id]
    own = inputs.data.train_interactions.filter(pl.col("user_id") == rows[0].user_id)["item_id"].to_list()
    own += [e.target for e in (*inputs.data.validation, *inputs.data.test) if e.user_id == rows[0].user_id]
    lists = [replace(e, candidates=tuple(i for i in inputs.data.catalogue.ids if i not in e.history)) for e in rows]
    later = [[i for i in own[own.index(e.target) + 1 :] if i in e.candidates] for e in lists]
    negatives = sum(len(e.candidates) - 1 for e in lists)
    assert false_negatives(lists, inputs.data) == pytest.approx(sum(map(len, later)) / negatives)
    assert sum(map(len, later)) > 0
    negative_rows(inputs, section(negatives_from="uniform"), inputs.data.train[:9], None, None, tmp_path)
    assert "s-dpo: 2.2% of these negatives are items that the user interacts with later" in capsys.readouterr().err


def test_rows_without_enough_free_items_are_skipped_and_counted(data, section, capsys):
    """Lists have five negatives; one user has taken all items but four, another all but five."""
    few, enough, other = ({e.user_id: e for e in data.train}[user] for user in ("u01", "u02", "u03"))
    log = data.train_interactions.filter(~pl.col("user_id").is_in([few.user_id, enough.user_id]))
    for e, free in ((few, 4), (enough, 5)):
        own = [*e.history, e.target]
        others = [item for item in data.catalogue.ids if item not in own]
        own += others[: len(others) - free]
        more = {"user_id": [e.user_id] * len(own), "item_id": own, "timestamp": range(len(own))}
        log = pl.concat([log, pl.DataFrame(more).cast(log.schema).select(log.columns)])
    full, rows = replace(data, train_interactions=log), [few, enough, other]
    assert rows_with_room(rows, full, section(negatives_from="uniform")) == [enough, other]
    told = " ".join(capsys.readouterr().err.split())
    skipped = (
        "s-dpo: 1 of 3 examples are skipped: their users have fewer than 5 unseen items to sample negatives from"
    )
    assert skipped in told
    assert rows_with_room(rows, full, section(negatives_from="in-batch")) == rows
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["in-batch", "hard"])
def test_training_sees_the_lists_that_are_kept(inputs, data, section, tmp_path, how):
    plain = alignment_rows(data, section(), 0)
    train_align(inputs, section(negatives_from=how), None, tmp_path)
    kept = frame_to_examples(pl.read_parquet(tmp_path / NEGATIVES_FILE))
    assert [(e.user_id, e.history, e.target) for e in kept] == [(e.user_id, e.history, e.target) for e in plain]
    assert [set(e.candidates) for e in kept] != [set(e.candidates) for e in plain]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_damaged_lists_are_drawn_again(inputs, data, section, tmp_path, capsys):
    one, rows = section(negatives_from="uniform"), alignment_rows(data, section(), 0)
    drawn = negative_rows(inputs, one, rows, None, None, tmp_path)
    (tmp_path / NEGATIVES_FILE).write_bytes((tmp_path / NEGATIVES_FILE).read_bytes()[:100])
    assert negative_rows(inputs, one, rows, None, None, tmp_path) == drawn
    assert "negatives are sampled again" in " ".join(capsys.readouterr().err.split())


def test_hard_negatives_score_highest_under_the_start(inputs, recipe, data, section, tmp_path):
    """With a pool of everything: no item that the user has not taken scores higher than those in the list."""
    train_align(inputs, section(negatives_from="hard", negatives_pool=1000, rows=4), None, tmp_path)
    rows = frame_to_examples(pl.read_parquet(tmp_path / NEGATIVES_FILE))
    taken = {u: set(f["item_id"].to_list()) for (u,), f in data.train_interactions.group_by("user_id")}
    judge = CatalogueRanker(lm_ranker("judge", None, data, recipe.model))
    for e in rows:
        free = [i for i in data.catalogue.ids if i not in taken[e.user_id]]
        scores = judge.score([type(e)(e.user_id, e.history, (*free, e.target), e.target)])[0]
        assert {i for _, i in sorted(zip(-scores[:-1], free, strict=True))[:5]} == set(e.candidates) - {e.target}


def test_an_interrupted_stage_keeps_its_lists(inputs, data, section, tmp_path, monkeypatch):
    one = section(negatives_from="uniform")
    first = negatives.negative_rows(inputs, one, data.train[:9], None, None, tmp_path)
    monkeypatch.setattr(negatives, "resample_negatives", lambda *a, **k: pytest.fail("drawn again"))
    assert negatives.negative_rows(inputs, one, data.train[:9], None, None, tmp_path) == first


@pytest.mark.parametrize(
    ("changes", "rankers", "message"),
    [
        ({"negatives_from": "hard", "miner": "SASRec"}, [], "there is no 'SASRec' in `rankers`"),
        (
            {"negatives_from": "list", "miner": "SASRec"},
            [SASREC],
            "SASRec is only used with negatives_from: hard; remove",
        ),
        ({"negatives_from": "hard", "miner": "blend"}, [BLEND], r"align\.s-dpo\.miner: blend depends on s-dpo"),
    ],
)
def test_a_miner_that_cannot_be_asked(recipe, section, changes, rankers, message):
    raw = recipe.model_dump(mode="json") | {"rankers": rankers}
    with pytest.raises(ConfigError, match=message):
        checked_recipe(raw | {"align": [section().model_dump() | changes]})


def test_a_recommender_of_the_recipe_chooses(recipe, data, section, tmp_path):
    align = section(negatives_from="hard", miner="SASRec", negatives_pool=20).model_dump()
    raw = recipe.model_dump(mode="json") | {"sft": None, "rankers": [SASREC, {"kind": "morec"}], "align": [align]}
    run_recipe(Recipe.model_validate(raw), tmp_path, until="align")
    assert [p.name for p in (tmp_path / "rankers").iterdir()] == ["SASRec"]  # MoRec is not needed
    rows = frame_to_examples(pl.read_parquet(tmp_path / "align" / "s-dpo" / NEGATIVES_FILE))
    miner = open_run(tmp_path).stage("SASRec").load(8)
    assert miner.score(rows).mean() > miner.score(alignment_rows(data, section(), 0)).mean()
