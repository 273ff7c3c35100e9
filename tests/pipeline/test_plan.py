"""prefrec.pipeline.plan: what a stage needs, what has changed, and that a model answers only beside its recipe."""

import json
import shutil
from dataclasses import replace

import pytest

from command import prefrec
from prefrec.errors import ConfigError
from prefrec.export.ranker import export_ranker
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.prepare import PrepareStage
from prefrec.pipeline.run import run_recipe, survey
from prefrec.recipe import Recipe, dump_recipe
from prefrec.runs.stage import stage
from prefrec.stages.inputs import RunInputs
from prefrec_server.server import open_engine

MODELS = ("sft", "dpo", "s-dpo")


@pytest.fixture(scope="module")
def whole(recipe) -> Recipe:
    """The tiny recipe on fewer rows."""
    raw = recipe.model_dump(mode="json")
    short = {"rows": 16, "epochs": 1}
    raw["sft"] |= short | {"eval_rows": 0}
    raw["align"] = [a | short for a in raw["align"]]
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def trained(whole, tmp_path_factory):
    """A run of it, without evaluation; to be read only."""
    folder = tmp_path_factory.mktemp("made-with") / "run"
    run_recipe(whole, folder, until="align")
    return folder


@pytest.fixture
def beside(trained, whole, tmp_path):
    """The run with another recipe in it, as a run that failed or ended early leaves it."""

    def change(**sections):
        folder = tmp_path / "run"
        if not folder.exists():
            shutil.copytree(trained, folder)
        raw = whole.model_dump(mode="json")
        for section, fields in sections.items():
            raw[section] = raw[section] | fields if isinstance(fields, dict) else fields
        (folder / "recipe.yaml").write_text(dump_recipe(Recipe.model_validate(raw)), encoding="utf-8")
        return open_run(folder)

    return change


def test_beside_its_own_recipe_every_model_answers(trained):
    run = open_run(trained)
    assert [run.changed(name) for name in MODELS] == [[]] * 3
    assert run.plan.stale() == {}
    assert run.models[::-1] == ["s-dpo", "dpo", "sft", "zero-shot"]


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({"name": "other", "evaluate": {"rows": 3}, "sft": {"save_steps": 9, "eval_steps": 5}}, [[]] * 3),
        ({"model": {"max_length": 300, "dtype": "bfloat16"}}, [["model.dtype", "model.max_length"]] * 3),
        ({"model": {"name": "smollm2-135m"}}, [["model.name"]] * 3),
        ({"lora": {"r": 2}, "seed": 1}, [["seed", "lora.r"]] * 3),
        ({"lora": None}, [["lora"]] * 3),
        ({"sft": {"rows": 8, "titles": 6}}, [["sft.rows", "sft.titles"]] * 3),
        ({"sft": None}, [[], ["sft"], ["sft"]]),
    ],
)
def test_what_has_changed_is_told(beside, sections, changed):
    run = beside(**sections)
    assert [run.changed(name) for name in MODELS] == changed


def test_an_alignment_that_went_on_from_another_is_compared_with_that_one(whole, data, tmp_path):
    raw = whole.model_dump(mode="json")
    raw["align"][1] |= {"start": "dpo"}

    def planned(**dpo):
        recipe = Recipe.model_validate(raw | {"align": [raw["align"][0] | dpo, raw["align"][1]]})
        inputs = RunInputs(data, "d", recipe.model, recipe.lora, recipe.seed)
        return Plan(recipe, inputs, tmp_path).stage("s-dpo")

    stage = planned()
    stage.folder.mkdir(parents=True)
    (stage.folder / "stage.json").write_text(json.dumps({"made_with": stage.made_with}))
    assert stage.changed() == []
    assert planned(beta=9.0).changed() == ["align.dpo.beta"]


def _changed(recipe: Recipe, **sections) -> Recipe:
    raw = recipe.model_dump(mode="json")
    return Recipe.model_validate(raw | {name: raw[name] | fields for name, fields in sections.items()})


def _why(recipe: Recipe, folder, until="align") -> dict[str, str]:
    return {stage["stage"]: stage["why"] for stage in survey(recipe, folder, until)}


def test_what_has_to_be_made_and_why(trained, whole, tmp_path):
    assert _why(whole, trained) == {"prepare": "", "sft": "", "dpo": "", "s-dpo": ""}
    rows = _changed(whole, sft={"rows": 8})
    assert _why(rows, trained) == {"prepare": "", **dict.fromkeys(MODELS, "changed: sft.rows")}
    assert _why(_changed(whole, sft={"save_steps": 9}), trained, "sft") == {"prepare": "", "sft": ""}
    shorter = _changed(whole, data={"history_length": 3})
    after = dict.fromkeys(MODELS, "after prepare")
    assert _why(shorter, trained) == {"prepare": "changed: data.history_length", **after}
    assert _why(whole, tmp_path / "none") == {"prepare": "not made yet", **after}
    assert not (tmp_path / "none").exists()


def test_a_plan_has_needs_and_the_costs_of_the_last_time(trained, whole):
    raw = whole.model_dump(mode="json") | {"rankers": [{"kind": "blend", "parts": ["s-dpo", "popularity"]}]}
    stages = {stage["stage"]: stage for stage in survey(Recipe.model_validate(raw), trained)}
    blend = {"stage": "blend", "why": "not made yet", "needs": ["s-dpo", "popularity"]}
    assert stages["blend"] == blend | {"seconds": None, "peak_bytes": None}
    state = json.loads((trained / "sft" / "stage.json").read_text())
    assert (stages["sft"]["seconds"], stages["sft"]["peak_bytes"]) == (state["seconds"], state["peak_bytes"])


def test_a_ranker_is_due_because_of_the_stage_that_it_needs(trained, whole, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    blend = {"rankers": [{"kind": "blend", "parts": ["s-dpo", "popularity"]}]}
    recipe = Recipe.model_validate(whole.model_dump(mode="json") | blend)
    state = {"key": "earlier", "config": recipe.rankers[0].model_dump(mode="json"), "finished": True, "files": {}}
    (folder / "rankers" / "blend").mkdir(parents=True)
    (folder / "rankers" / "blend" / "stage.json").write_text(json.dumps(state))
    assert _why(recipe, folder, "rankers")["blend"] == "changed: data, seed, s-dpo, popularity"
    assert _why(_changed(recipe, sft={"rows": 8}), folder, "rankers")["blend"] == "changed: s-dpo"


def test_unfinished_damaged_and_set_aside(trained, whole, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "sft" / "adapter" / "adapter_config.json").write_text("{}")
    state = json.loads((folder / "align" / "dpo" / "stage.json").read_text())
    (folder / "align" / "dpo" / "stage.json").write_text(json.dumps(state | {"finished": False}))
    (folder / "align" / "s-dpo").rename(folder / "align" / "s-dpo.previous-1")
    why = {"prepare": "", "sft": "damaged: adapter/adapter_config.json", "dpo": "unfinished", "s-dpo": ""}
    assert _why(whole, folder) == why


def test_the_command_line_prints_it(trained, whole, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(whole), encoding="utf-8")
    asked = (tmp_path / "recipe.yaml", "--out", trained, "--set", "align.dpo.beta=3")
    done = prefrec("plan", *asked)
    assert done.code == 0
    assert "changed: align.dpo.beta" in done.out
    assert "1 of 4 stages have to run" in done.out
    assert "--until prepare" in prefrec("plan", asked[0], "--out", tmp_path / "none").out
    raw = whole.model_dump(mode="json")
    raw["align"][0]["beta"] = 3.0
    assert json.loads(prefrec("plan", *asked, "--json").out) == survey(Recipe.model_validate(raw), trained)
    old = prefrec("run", *asked, "--dry-run")  # as earlier versions said it
    assert (old.code, old.out) == (2, "")
    assert "--dry-run was removed: `prefrec plan RECIPE` lists the stages" in old.err


def test_other_data_and_another_text_of_a_template_are_told(trained, whole, tmp_path):
    (tmp_path / "own.jinja2").write_text("{{ history }} {{ candidates }}\n", encoding="utf-8")
    own = whole.model_dump(mode="json")
    own["model"]["templates"] = [str(tmp_path / "own.jinja2")]
    own |= {"align": []}
    run_recipe(Recipe.model_validate(own), tmp_path / "own", until="sft")
    assert open_run(tmp_path / "own").changed("sft") == []
    (tmp_path / "own.jinja2").write_text("{{ candidates }} {{ history }}\n", encoding="utf-8")
    assert open_run(tmp_path / "own").changed("sft") == ["model.templates"]
    shutil.copytree(trained, tmp_path / "run")
    raw = whole.model_dump(mode="json")
    raw["data"]["history_length"] = 3
    run_recipe(Recipe.model_validate(raw), tmp_path / "run", until="prepare")
    assert open_run(tmp_path / "run").changed("sft") == ["data"]


def test_an_address_with_credentials_is_not_named_as_changed(tmp_path):
    """`stage.json` keeps addresses without their secrets."""
    address = "http://me:S3cr3t@h.org/log.parquet?t=S3cr3t"
    raw = {"name": "x", "data": {"source": "files", "interactions": address, "items": "items.csv"}}
    with stage(tmp_path / "data", "k", "prepare", PrepareStage(Recipe.model_validate(raw), tmp_path).settings):
        pass
    raw["data"]["history_length"] = 3
    changed = PrepareStage(Recipe.model_validate(raw), tmp_path / "data")
    assert changed.changed() == ["data.history_length"]


def test_a_base_that_was_copied_is_not_another_and_one_that_is_gone_is_not_compared(beside, whole, tmp_path):
    copy = shutil.copytree(whole.model.name, tmp_path / "copy")
    assert beside(model={"name": str(copy)}).changed("sft") == []
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert beside(model={"name": str(copy)}).changed("sft") == ["model.name"]
    shutil.rmtree(copy)
    assert beside(model={"name": str(copy)}).changed("sft") == []


def test_no_model_answers_beside_another_recipe(beside, tmp_path):
    run = beside(model={"templates": ["continue"]})
    refused = r"s-dpo was made with another recipe \(model\.templates\) than the one in this folder: run the recipe"
    for ask in (
        lambda: run.ranker("s-dpo"),
        lambda: open_engine(run),
        lambda: export_ranker(run, "s-dpo", tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match=refused):
            ask()
    assert run.stage("zero-shot").weights is None
    done = prefrec("chat", run.folder, "--user", run.data.test[0].user_id, "--retriever", "s-dpo")
    assert (done.code, done.out) == (1, "")
    assert "was made with another recipe (model.templates) than the one in this folder" in done.err
    assert not (tmp_path / "out").exists()
    export_ranker(beside(), "s-dpo", tmp_path / "out")  # the old recipe is put back


def test_runs_of_before_answer_and_where_it_is_known_a_doubt_is_told(beside, capsys):
    run = beside(model={"templates": ["continue"]})
    for file in run.folder.rglob("stage.json"):
        state = json.loads(file.read_text())
        state.pop("made_with", None)
        file.write_text(json.dumps(state))
    old = open_run(run.folder)
    assert old.changed("s-dpo") is None
    assert export_ranker(old, "s-dpo", run.folder.parent / "out").is_dir()
    assert "warning" not in capsys.readouterr().err
    assert replace(old, outdated="recipe changed since").stage("s-dpo").name == "s-dpo"
    assert "s-dpo may have been made with another recipe than the run has now: recipe" in capsys.readouterr().err
