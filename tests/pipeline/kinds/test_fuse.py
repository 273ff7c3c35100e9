"""Fuse in a recipe: weights from validation rows, a row of the table, and the whole catalogue."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from prefrec.data import read_prepared, seen_items
from prefrec.errors import ConfigError
from prefrec.evaluation import (
    metrics_for,
    predict,
    read_predictions,
    target_ranks,
    whole_catalogue,
)
from prefrec.pipeline.entry import Entry, Ingredients, full_entries, lm_entry, lm_ranker, reference_entry
from prefrec.pipeline.kinds.fuse import LateRanker, fuse_entry
from prefrec.pipeline.plan import Step
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.rows import check_rows
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import ask_full, fit_references
from prefrec.rankers import CatalogueRanker, lm
from prefrec.rankers.fuse import FuseConfig, standardise
from prefrec.rankers.reference import reference_rankers
from prefrec_systems.retrieve import RetrieveThenRankConfig
from prefrec_systems.retrieve.stage import retrieve_entry

FUSED = {"kind": "fuse", "parts": ["zero-shot", "co-occurrence"], "rows": 12}
PRIOR = FUSED | {
    "name": "with-prior",
    "parts": ["zero-shot", "popularity"],
    "title_prior": True,
    "candidates": "catalogue",
}


def fitted(data, name):
    """A reference row."""
    return reference_rankers(data.train_interactions, data.catalogue, names=[name])[0]


def _recipe(recipe: Recipe, *rankers) -> Recipe:
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": [], "rankers": list(rankers)}
    raw["evaluate"] |= {"rows": 8, "generate_rows": 0}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """To be read only."""
    folder = tmp_path_factory.mktemp("fuse") / "run"
    run_recipe(_recipe(recipe, FUSED, PRIOR), folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Rows of each pass of a language model."""
    found = []
    inner = lm.own_batches
    monkeypatch.setattr(lm, "own_batches", lambda sets, size: found.append(len(sets)) or inner(sets, size))
    return found


def _chosen(folder, name="fused"):
    return json.loads((folder / "rankers" / name / "fuse.json").read_text())


def _ndcg(scores, rows):
    return float(metrics_for([10])["ndcg@10"](*target_ranks(scores, [e.target_index for e in rows])).mean())


def _parts(folder, recipe, reference="co-occurrence"):
    data = read_prepared(folder / "data")
    return (
        data,
        lm_ranker("zero-shot", None, data, recipe.model),
        fitted(data, reference),
    )


def test_what_is_said_of_the_validation_rows_is_so(finished, recipe):
    data, *parts = _parts(finished, recipe)
    rows, found = data.some("validation", 12), _chosen(finished)
    z = [standardise(ranker.score(rows)) for ranker in parts]
    weights = list(found["weights"].values())
    assert all(weights)  # here both have something to say
    assert (found["n"], found["candidates"]) == (12, "list")
    assert list(found["weights"]) == ["zero-shot", "co-occurrence"]
    reached = {"zero-shot": _ndcg(z[0], rows), "co-occurrence": _ndcg(z[1], rows)}
    reached["fused"] = _ndcg(weights[0] * z[0] + weights[1] * z[1], rows)
    assert found["ndcg@10"] == pytest.approx(reached, abs=1e-9)
    assert reached["fused"] >= max(reached.values())


def test_over_the_whole_catalogue_the_weights_are_those_of_such_lists(finished, recipe):
    data, zero_shot, popularity = _parts(finished, recipe, "popularity")
    rows = data.some("validation", 12)
    rows = whole_catalogue(rows, data.catalogue, seen_items(data, rows))
    found = _chosen(finished, "with-prior")
    asked = {"zero-shot": CatalogueRanker(zero_shot), "popularity": popularity}
    reached = {name: _ndcg(standardise(ranker.score(rows)), rows) for name, ranker in asked.items()}
    assert list(found["weights"]) == [*asked, "title prior"]
    assert found["weights"]["title prior"]  # here it has something to say
    assert {name: found["ndcg@10"][name] for name in asked} == pytest.approx(reached, abs=1e-9)
    assert found["ndcg@10"]["with-prior"] == max(found["ndcg@10"].values())


def test_a_row_of_the_table_that_asks_no_part_again(finished, recipe):
    metrics = json.loads((finished / "metrics.json").read_text())["evaluation"]["metrics"]
    assert list(metrics)[-3:] == ["zero-shot", "fused", "with-prior"]
    data, *parts = _parts(finished, recipe)
    rows = data.some("test", 8)
    weights = _chosen(finished)["weights"].values()
    want = sum(w * standardise(ranker.score(rows)) for w, ranker in zip(weights, parts, strict=True))
    table = read_predictions(finished / "predictions.parquet").filter(pl.col("ranker") == "fused")
    np.testing.assert_allclose(table["scores"].to_list(), want, atol=1e-6)


def test_the_report_tells_the_weights(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert "weights chosen on 12 validation rows over their candidates: NDCG@10" in text
    assert "weights chosen on 12 validation rows over the whole catalogue: NDCG@10" in text


def test_models_are_asked_once_for_the_same_rows(recipe, tmp_path, asked):
    both = _recipe(recipe, FUSED)
    run_recipe(both, tmp_path / "run")
    assert asked == [12, 8]  # to choose; zero-shot in the table, from which the fused scores are made
    run_recipe(both, tmp_path / "run")
    assert asked == [12, 8]
    (tmp_path / "run" / "rankers" / "fused" / "fuse.json").unlink()
    run_recipe(both, tmp_path / "run")
    assert asked == [12, 8]  # weights are chosen again from what was said
    run_recipe(_recipe(recipe, FUSED | {"rows": 5}), tmp_path / "run", until="rankers")
    assert asked == [12, 8, 5]


@pytest.fixture
def stage(finished, recipe, tmp_path):
    """Entries of zero-shot, as the stage gets it, and of a fuse entry, by name; the run's data."""
    data = read_prepared(finished / "data")
    made_of = Ingredients(data, "x", recipe.model, recipe.lora, 0)
    before = {"zero-shot": lm_entry("zero-shot", None, data, recipe.model)}

    def carry_out(config, **more):
        found, section = before | more, FuseConfig(**config)
        found |= {n: reference_entry(made_of, n) for n in section.parts if n not in found}
        folder = tmp_path / section.name
        entry = Step(fuse_entry(made_of, section, folder, found), folder, section.kind, section).run()
        return before | more | {section.name: entry}

    return data, carry_out


def test_over_the_whole_catalogue_no_candidates_are_shown(finished, recipe, stage, tmp_path, asked, monkeypatch):
    data, carry_out = stage
    before = carry_out(FUSED | {"name": "fused"})
    asked.clear()
    entries = full_entries(list(before.values()))
    section = recipe.evaluate.model_copy(update={"rows": 3, "references": []})
    scored = []
    inner = CatalogueRanker.score
    monkeypatch.setattr(CatalogueRanker, "score", lambda self, rows: scored.append(len(rows)) or inner(self, rows))
    answers = ask_full(data, section, fit_references(data, section, 0), entries, tmp_path / "asked", seed=0)
    assert asked == []  # no list was put into a prompt
    assert set(scored) == {3}
    rows = data.some("test", 3)
    lists = whole_catalogue(rows, data.catalogue, seen_items(data, rows))
    _, zero_shot, neighbours = _parts(finished, recipe)
    weights, parts = _chosen(finished)["weights"].values(), (CatalogueRanker(zero_shot), neighbours)
    want = sum(w * standardise(ranker.score(lists)) for w, ranker in zip(weights, parts, strict=True))
    ranks, tied = target_ranks(want, [e.target_index for e in lists])
    found = answers.filter(ranker="fused")
    assert (found["rank"].to_list(), found["tied"].to_list()) == (ranks.tolist(), tied.tolist())


def test_a_fused_retriever_shows_no_candidates(recipe, stage, asked, tmp_path):
    data, carry_out = stage
    before = carry_out(FUSED | {"name": "fused"})
    made_of = Ingredients(data, "x", recipe.model, recipe.lora, 0)
    config = RetrieveThenRankConfig(name="pair", retriever="fused", ranker="zero-shot", retrieve=4)
    pair = retrieve_entry(made_of, config, tmp_path, before).load(8)
    rows = data.some("test", 3)
    asked.clear()
    pair.score(whole_catalogue(rows, data.catalogue, seen_items(data, rows)))
    assert asked == [3]  # the ranker, with four titles a row


def test_a_part_that_cannot_be_asked_about_the_whole_catalogue(recipe, stage):
    data, carry_out = stage
    shown = Entry("shown", "key", lambda _: fitted(data, "popularity"))
    config = FUSED | {"name": "fused", "parts": ["shown", "item-kNN"]}
    fused = carry_out(config, shown=shown)["fused"]
    assert full_entries([fused]) == []
    with pytest.raises(ConfigError, match=r"fused\.candidates: shown cannot be asked about the whole catalogue; set"):
        carry_out(config | {"candidates": "catalogue"}, shown=shown)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parts": ["zero-shot", "sft"]},
            r"fused\.parts: there is no 'sft' before it; there are random, .*zero-shot",
        ),
        ({"parts": ["zero-shot", "later"]}, r"fused\.parts: there is no 'later' before it"),
        ({"parts": ["zero-shot"]}, "'zero-shot' alone cannot be fused"),
        ({"candidates": "some"}, "candidates: Input should be 'list' or 'catalogue'"),
    ],
)
def test_mistakes_are_named(recipe, changes, message):
    with pytest.raises(ValidationError, match=message):
        _recipe(recipe, FUSED | changes, PRIOR | {"name": "later"})


def test_weights_that_are_given_are_taken(recipe, tmp_path, capsys):
    run_recipe(_recipe(recipe, FUSED | {"weights": [1, 3]}), tmp_path / "run", until="rankers")
    assert "fused = zero-shot + 3·co-occurrence, weights as given; on 12 validation rows" in " ".join(
        capsys.readouterr().err.split()
    )
    assert _chosen(tmp_path / "run")["weights"] == {"zero-shot": 1, "co-occurrence": 3}


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0, 0]])
def test_weights_that_do_not_fit_are_refused(recipe, weights):
    with pytest.raises(ValueError, match="weights: expected 2, one per part and not all 0"):
        _recipe(recipe, FUSED | {"weights": weights})


def test_without_validation_rows_it_is_refused_before_anything_is_trained(recipe, data):
    with pytest.raises(ConfigError, match=r"rankers\.fused: its weights are chosen on validation rows, and the data"):
        check_rows(_recipe(recipe, FUSED), replace(data, validation=[]))


def test_a_late_ranker_is_loaded_for_rows_to_which_no_answer_is_known(data):
    loaded = []

    def load(batch_size):
        loaded.append("popularity")
        return fitted(data, "popularity")

    late, rows = LateRanker(Entry("late", "key", load), 8), data.test[:4]
    known = predict(fitted(data, "random"), rows, data.catalogue)
    late.know({"key": known})
    assert late.score(rows).tolist() == known["scores"].to_list()
    assert loaded == []
    others = [*rows[:3], replace(rows[3], candidates=rows[3].candidates[::-1])]
    want = fitted(data, "popularity").score(others)
    for _ in range(2):
        np.testing.assert_array_equal(late.score(others), want)
    assert loaded == ["popularity"]
