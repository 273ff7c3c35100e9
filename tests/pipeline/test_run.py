"""Whole recipes in small: every stage, what is skipped, what is made again, and going on after a stop."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from baselines import UNDATED_BASELINES
from prefrec.data import read_prepared
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation import evaluate_predictions, read_predictions
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.recommender import Recommender
from prefrec.report import write_report
from prefrec.runs.contents import read_run
from prefrec.runs.results import BEST, METRICS, write_results
from prefrec.runs.stage import last_checkpoint
from prefrec.training.progress import ProgressCallback
from sealed import write_metrics
from tiny_run import adapter_weights, read_tables
from verdicts import NONE

ALIGNMENTS = ("align/dpo", "align/s-dpo")


@pytest.fixture(scope="module")
def recipe(recipe) -> Recipe:
    """The tiny recipe with few rows to choose the best on, and to rank the whole catalogue for."""
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {"max_validation_rows": 8}
    raw["evaluate"] |= {"full_rows": 3}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A finished run, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert run_recipe(recipe, folder).folder == folder
    return folder


@pytest.fixture
def run(recipe, tmp_path):
    """Runs the tiny recipe, or a changed copy of it, always in the same folder."""

    def carry_out(changed: Recipe = recipe, until: str = "evaluate") -> Path:
        run_recipe(changed, tmp_path / "run", until=until)
        return tmp_path / "run"

    return carry_out


@pytest.fixture
def run_again(run, finished, tmp_path):
    """Runs a recipe where the tiny recipe has been run; returns the folder and which stages were made again."""
    shutil.copytree(finished, tmp_path / "run")

    def carry_out(changed: Recipe, until: str = "evaluate") -> tuple[Path, set[str]]:
        before = _stamps(tmp_path / "run")
        folder = run(changed, until)
        return folder, _made_again(before, _stamps(folder))

    return carry_out


def _changed(recipe: Recipe, *, sft=None, align=None, **sections) -> Recipe:
    """The recipe with fields of its SFT section, fields of its last alignment or whole sections replaced."""
    raw = recipe.model_dump(mode="json") | sections
    raw["sft"] |= sft or {}
    raw["align"][-1] |= align or {}
    return Recipe.model_validate(raw)


def _stamps(folder: Path) -> dict[str, int]:
    """Path → date of the files that each stage left."""
    patterns = ("data/*.parquet", "sft/adapter/*", "align/*/adapter/*", "predictions/*.parquet")
    files = [f for p in patterns for f in folder.glob(p) if ".previous" not in str(f)]
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in files}


def _references(folder: Path) -> dict[str, int]:
    found = {f.name: f.stat().st_mtime_ns for f in (folder / "reference").iterdir()}
    assert len(found) == len(ALIGNMENTS)
    return found


def _made_again(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Stages and rankers whose files are not those of before."""
    changed = {Path(f) for f in after if after[f] != before.get(f)}
    stages = {str(f.parent).removesuffix("/adapter") for f in changed if "adapter" in f.parts}
    return stages | {str(f.with_suffix("")) for f in changed if "adapter" not in f.parts}


@pytest.mark.long
@pytest.mark.parametrize("answers", ["titles", "items"])
def test_a_run_in_bfloat16_is_priced_trained_measured_and_answers(run, recipe, monkeypatch, answers):
    """Computers with fast 16-bit products take bfloat16 by themselves; the other tests compute in float32."""
    monkeypatch.setattr("prefrec.pipeline.price.WORTH", 1)
    raw = recipe.model_dump(mode="json")
    raw |= {"lora": None, "refit": True, "rankers": [{"kind": "blend", "parts": ["popularity", "s-dpo"]}]}
    raw["model"] |= {"dtype": "bfloat16", "answers": answers}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0}
    folder = run(Recipe.model_validate(raw))
    for ranker in ("sft", "s-dpo", "blend"):
        best = Recommender.from_run(folder, ranker).recommend(["Red Alien"], k=3)
        assert np.isfinite([row.score for row in best]).all()


def test_every_stage_leaves_what_the_next_needs(finished, recipe):
    assert read_prepared(finished / "data").protocol["source"] == "files"
    for stage in ("data", "sft", *ALIGNMENTS):
        assert json.loads((finished / stage / "stage.json").read_text())["finished"]
    sft, dpo, s_dpo = (adapter_weights(finished / s / "adapter") for s in ("sft", *ALIGNMENTS))
    assert all(any(not torch.equal(a[n], b[n]) for n in a) for a, b in ((sft, dpo), (sft, s_dpo), (dpo, s_dpo)))
    assert Recipe.model_validate(yaml.safe_load((finished / "recipe.yaml").read_text())) == recipe
    facts = json.loads((finished / "environment.json").read_text())
    assert facts["torch"] == str(torch.__version__)
    assert {"prefrec", "transformers", "peft", "python", "platform", "processor", "commit", "seed"} <= facts.keys()
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_predictions(finished, recipe):
    metrics = json.loads((finished / "metrics.json").read_text())
    predictions = read_predictions(finished / "predictions.parquet")
    rankers = [*UNDATED_BASELINES, "zero-shot", "sft", "dpo", "s-dpo"]
    assert predictions["ranker"].unique(maintain_order=True).to_list() == rankers
    assert list(metrics["evaluation"]["metrics"]) == rankers
    again = evaluate_predictions(predictions.with_columns(generated=pl.lit(None, pl.String)), ks=[1, 3], audit=NONE)
    assert again.to_json()["metrics"] == metrics["evaluation"]["metrics"]
    assert (metrics["split"], metrics["evaluation"]["n"]) == (recipe.evaluate.split, recipe.evaluate.rows)
    assert metrics["generation"]["n"] == recipe.evaluate.generate_rows
    compared = {(c["ranker"], c["against"]) for c in metrics["evaluation"]["comparisons"]}
    assert {("dpo", "sft"), ("s-dpo", "dpo"), ("s-dpo", "sft")} <= compared
    ranks = predictions.filter(pl.col("ranker") == "s-dpo")["rank"].to_numpy()
    assert metrics["evaluation"]["metrics"]["s-dpo"]["hr@1"]["mean"] == pytest.approx(np.mean(ranks == 1))


def test_a_second_run_does_nothing_again(run_again, finished, recipe):
    folder, again = run_again(recipe, until="report")
    assert again == set()
    assert (folder / "metrics.json").read_text() == (finished / "metrics.json").read_text()
    assert not list(folder.rglob("*.previous*"))


def test_a_run_returns_what_its_folder_holds_and_reads_its_data_once(finished, recipe, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    tables = read_tables(monkeypatch)
    run = run_recipe(recipe, folder)
    assert tables.count("interactions.parquet") == 1
    opened = open_run(folder)
    assert tables.count("interactions.parquet") == 2
    assert run.results == opened.results
    assert run.results.to_json() == opened.results.to_json()
    assert (run.folder, run.recipe, run.stages, run.outdated) == (folder, opened.recipe, opened.stages, "")
    assert run.predictions().equals(opened.predictions())
    write_results(tmp_path / "again", opened.results)
    for name in (METRICS, BEST):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_another_beta_concerns_one_alignment_and_its_predictions(run_again, finished, recipe):
    folder, again = run_again(_changed(recipe, align={"beta": 0.3}))
    assert again == {"align/s-dpo", "predictions/s-dpo"}
    assert _references(folder) == _references(finished)  # the same rows and reference: not asked again
    assert adapter_weights(folder / "align" / "s-dpo.previous-1" / "adapter")
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["align"][1]["beta"] == 0.3


def test_the_same_log_and_model_elsewhere_concern_nothing(run_again, recipe, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    raw = recipe.data.model_dump(mode="json")
    for name in ("interactions", "items"):
        raw[name] = shutil.copy(raw[name], moved)
    model = recipe.model.model_dump() | {"name": str(tmp_path / "model")}
    shutil.copytree(recipe.model.name, tmp_path / "model")
    (tmp_path / "model" / "config.json").touch()
    assert run_again(_changed(recipe, data=raw, model=model))[1] == set()


def test_another_evaluation_trains_nothing(run_again, recipe):
    evaluation = recipe.evaluate.model_dump() | {"rows": 10}
    asked = {f"predictions/{name}" for name in recipe.lm_rankers}
    assert run_again(_changed(recipe, evaluate=evaluation))[1] == asked
    assert run_again(_changed(recipe, evaluate=evaluation | {"ks": [2]}))[1] == set()


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_alike(run, finished, stop_after):
    with stop_after(3, "s-dpo"):
        run()
    folder = run(until="prepare")
    killed = folder / "align/s-dpo"
    assert not json.loads((killed / "stage.json").read_text())["finished"]
    assert last_checkpoint(killed) == killed / "checkpoint-2"
    before = _stamps(folder)
    run()
    assert "sft" not in _made_again(before, _stamps(folder))
    for name in ("sft", *ALIGNMENTS):
        want, got = adapter_weights(finished / name / "adapter"), adapter_weights(folder / name / "adapter")
        assert all(torch.equal(want[n], got[n]) for n in want)
    assert (folder / "metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_numbers_that_are_not_finite_end_the_run_and_are_never_finished(run, finished, monkeypatch):
    whole = ProgressCallback.on_step_end

    def spoil(self, args, state, control, *, model, **kwargs):
        whole(self, args, state, control, model=model, **kwargs)
        if self.description == "sft" and state.global_step == 3:
            for weight in model.parameters():
                weight.data.fill_(torch.nan)

    message = r"^SFT: .* not finite at step [34] of \d+ \(peak learning rate 0\.005\): lower the learning"
    spoiled = run(until="prepare") / "sft"
    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", spoil)
        for _ in range(2):  # the second start does not take the stage for finished, and goes on from the same place
            with pytest.raises(ModelError, match=message):
                run()
            assert not json.loads((spoiled / "stage.json").read_text())["finished"]
            assert not (spoiled / "adapter").exists()
            assert last_checkpoint(spoiled) == spoiled / "checkpoint-2"
    want, got = (adapter_weights(place / "sft/adapter") for place in (finished, run(until="sft")))
    assert all(torch.equal(want[n], got[n]) for n in want)


def test_sft_on_histories_makes_all_models_anew(run_again, recipe):
    """Where the prompt shows no candidates; the rows of the table are the same."""
    model = recipe.model.model_dump() | {"templates": ["history"]}
    changed = _changed(recipe, model=model, sft={"titles": 5, "rows": 8}, align={"rows": 8})
    folder, again = run_again(changed, until="report")
    assert again == {"sft", *ALIGNMENTS, *(f"predictions/{name}" for name in ("zero-shot", "sft", "dpo", "s-dpo"))}
    assert "sft" in json.loads((folder / "metrics.json").read_text())["evaluation"]["metrics"]


def test_a_run_in_which_all_weights_are_trained(run, recipe, capfd):
    whole = _changed(recipe, sft={"rows": 8, "learning_rate": 1e-3}, align={"rows": 8, "learning_rate": 1e-3})
    whole = whole.model_copy(update={"lora": None, "align": whole.align[1:]})
    folder = run(whole, until="report")
    assert "Writing model" not in capfd.readouterr().err  # a bar of transformers
    for stage in ("sft", "align/s-dpo"):
        assert (folder / stage / "adapter" / "config.json").is_file()
        assert not (folder / stage / "adapter" / "adapter_config.json").exists()
    rankers = json.loads((folder / "metrics.json").read_text())["evaluation"]["metrics"]
    assert list(rankers)[-3:] == ["zero-shot", "sft", "s-dpo"]
    assert open_run(folder).changed("s-dpo") == []
    before = _stamps(folder)
    run(whole)
    assert _stamps(folder) == before


def _shorter(recipe: Recipe) -> Recipe:
    data = recipe.data.model_dump(mode="json")
    return _changed(recipe, data=data | {"candidates": data["candidates"] | {"size": 5}})


def test_metrics_of_another_recipe_are_not_shown(run_again, recipe):
    folder, _ = run_again(_shorter(recipe), until="prepare")
    page = write_report(read_run(folder)).read_text(encoding="utf-8")
    assert "predictions.parquet are out of date: data, recipe changed since the evaluation" in page
    assert "No results yet" in page
    with pytest.raises(DataError, match=r"predictions\.parquet is out of date: data, recipe changed since"):
        open_run(folder).predictions()


def test_metrics_of_another_model_are_not_shown(run_again, recipe):
    """Trained anew and not evaluated, then the first recipe again: its model and its metrics are back."""
    folder, _ = run_again(_changed(recipe, align={"beta": 0.3}), until="align")
    assert read_run(folder).outdated.startswith("align/s-dpo, recipe changed")
    folder, _ = run_again(recipe, until="align")
    contents = read_run(folder)
    assert (contents.outdated, contents.missing, contents.results.evaluation is None) == ("", [], False)


def test_what_decides_no_metrics_and_metrics_of_old_are_shown(run_again, recipe):
    evaluation = recipe.evaluate.model_dump() | {"batch_size": 3}
    folder, _ = run_again(_changed(recipe, evaluate=evaluation, name="renamed"), until="align")
    assert read_run(folder).outdated == ""
    folder, _ = run_again(_shorter(recipe), until="prepare")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("made_of").keys() == {"sft", *ALIGNMENTS, "data", "recipe"}
    write_metrics(folder, metrics)
    assert read_run(folder).results.evaluation is not None
    assert len(open_run(folder).predictions()) > 0


def test_there_and_back_trains_nothing_anew(run_again, finished, recipe):
    run_again(_changed(recipe, align={"beta": 0.3}), until="align")
    folder, again = run_again(recipe)
    want, got = (adapter_weights(f / "align/s-dpo/adapter") for f in (finished, folder))
    assert all(torch.equal(want[n], got[n]) for n in want)
    assert json.loads((folder / "align/s-dpo.previous-2/stage.json").read_text())["config"]["beta"] == 0.3
    assert again <= {"align/s-dpo", "predictions/s-dpo"}


def test_a_name_that_is_kept_for_another(recipe, tmp_path):
    named = {"kind": "tallrec", "name": "x.previous-1", "rows": 8}
    changed = Recipe.model_validate(recipe.model_dump(mode="json") | {"rankers": [named]})
    with pytest.raises(ConfigError, match="previous-1' cannot name a stage"):
        run_recipe(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"align": [{"name": "rankers", "rows": 8}]}, r"align\.rankers\.name"),
        ({"rankers": [{"kind": "tallrec", "name": "evaluate", "rows": 8}]}, r"rankers\.evaluate\.name"),
    ],
)
def test_a_name_that_until_means_otherwise(recipe, tmp_path, sections, field):
    changed = Recipe.model_validate(recipe.model_dump(mode="json") | sections)
    with pytest.raises(ConfigError, match=rf"^{field}: .*`--until \w+` means that part; choose another name"):
        run_recipe(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_reference_rows_alone(run, recipe):
    folder = run(Recipe(name="rows", data=recipe.data, evaluate={"zero_shot": False}), until="report")
    assert list(json.loads((folder / "metrics.json").read_text())["evaluation"]["metrics"])[-1] == "item only"
    assert (folder / "report.html").is_file()


def test_a_prepare_that_fails_is_not_finished(recipe, tmp_path):
    data = recipe.data.model_copy(update={"candidates": recipe.data.candidates.model_copy(update={"size": 61})})
    broken = recipe.model_copy(update={"data": data})
    with pytest.raises(DataError, match="61 candidates cannot be sampled from 60 items"):
        run_recipe(broken, tmp_path / "run")
    assert not json.loads((tmp_path / "run" / "data" / "stage.json").read_text())["finished"]
    run_recipe(recipe, tmp_path / "run", until="prepare")
    assert len(read_prepared(tmp_path / "run" / "data").test) == 40
