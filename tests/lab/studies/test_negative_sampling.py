"""Which negatives are false, against a slow twin; the whole study."""

import numpy as np
import polars as pl
import pytest

from prefrec.pipeline.opened import open_run
from prefrec.recipe import Recipe
from prefrec.stages.training_rows import alignment_rows
from prefrec_lab.studies import negative_sampling
from prefrec_lab.studies.negative_sampling import NEGATIVE_SAMPLING, PAST, drawn_rows, unaware_rows
from prefrec_lab.study_tools.carry_out import carry_out


@pytest.fixture(scope="module")
def finished(base, place):
    """With fewer sources, a small SASRec, and a pool of most items."""
    raw = base.model_dump(mode="json")
    raw["rankers"] = [{"kind": "sequential", "model": "SASRec", "epochs": 2, "hidden_size": 8}]
    raw["align"][0] |= {"negatives_pool": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negative_sampling, "SOURCES", ("list", "uniform", "popularity", "in-batch"))
        summary = carry_out(NEGATIVE_SAMPLING, Recipe.model_validate(raw), [0], place / "negatives-apart")
    return summary, place / "negatives-apart"


def _log(run):
    """user → items in order of time, held-out targets last."""
    log = run.data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")
    found = dict(log.iter_rows())
    for e in (*run.data.validation, *run.data.test):
        found.setdefault(e.user_id, []).append(e.target)
    return found


def test_rows_are_of_all_places_in_a_history(base, data):
    """With the latest alone, what a user takes later in training could only be among the few rows after them."""
    every = base.align[0].model_copy(update={"latest_per_user": 1, "rows": None})
    for section in negative_sampling.vary(base.model_copy(update={"align": [every]}), data).align:
        assert len(alignment_rows(data, section, 0)) == len(data.train) > len({e.user_id for e in data.train})


def test_one_who_knows_the_past_draws_anything_but_the_past(finished):
    run, later_found = open_run(finished[1] / "runs" / "seed-0"), 0
    log = _log(run)
    for section in run.recipe.align[1:]:
        aware = drawn_rows(run, section)
        for e in aware:
            assert not set(e.candidates) & set(log[e.user_id][:-2]) - {e.target}
        if section.negatives_from == "hard":
            continue
        rows = unaware_rows(run, section, aware)
        assert [(e.user_id, e.history, e.target) for e in rows] == [(e.user_id, e.history, e.target) for e in aware]
        for e in rows:
            assert not set(e.candidates) & set(e.history)
            later_found += len(set(e.candidates) & set(log[e.user_id]) - {e.target})
    assert later_found > 0


def test_the_shares_against_a_slow_twin(finished):
    summary, place = finished
    run = open_run(place / "runs" / "seed-0")
    log, table = _log(run), pl.DataFrame(summary["tables"]["negatives"], infer_schema_length=None)
    for section in run.recipe.align:
        shares = []
        if section.negatives_from in ("uniform", "popularity", "in-batch"):
            for e in unaware_rows(run, section, drawn_rows(run, section)):
                negatives = [i for i in e.candidates if i != e.target]
                later = log[e.user_id][log[e.user_id].index(e.target) + 1 :]
                shares.append(len([i for i in negatives if i in later]) / len(negatives))
        found = table.filter(variant=section.name, quantity=PAST)["mean"].to_list()
        assert found == ([pytest.approx(np.mean(shares))] if shares else [])
    assert table.filter(quantity=PAST)["mean"].max() > 0
