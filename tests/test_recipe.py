"""Recipes: what is refused, by file and field, and that the ones we ship are right."""

import json
from pathlib import Path

import pytest
import yaml

from prefrec import recipe as module
from prefrec.errors import ConfigError
from prefrec.presets import preset
from prefrec.prompts import load_template
from prefrec.recipe import Recipe, checked_recipe, dump_recipe, load_recipe
from prefrec.sections import AlignSection, SFTSection

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def _load(folder: Path, text: str) -> Recipe:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "r.yaml")


def test_a_name_is_enough(tmp_path):
    recipe = _load(tmp_path, "name: small")
    assert recipe.lm_rankers == ["zero-shot"]
    assert (recipe.sft, recipe.align) == (None, [])
    text = "{name: a, sft: {}, align: [{name: dpo, loss: dpo}, {}], evaluate: {zero_shot: false}}"
    assert _load(tmp_path, text).lm_rankers == ["sft", "dpo", "s-dpo"]


WRONG = (
    "{name: a, lora: {r: 0}, sft: {epochs: 0}}",
    r"lora\.r: .*; sft\.epochs: ",
    "{name: a, seed: 99999999999999999999}",
    "seed: 99999999999999999999 is too large; the maximum is",
    "{name: a, data: {candidates: {size: 4}}, align: [{num_negatives: 4, negatives_from: list}]}",
    "4 negatives, but a candidate set of 4 has only 3",
    "{name: a, align: [{name: x}], rankers: [{kind: tallrec, name: x}]}",
    "rankers: the name 'x' is used by another ranker",
    "{name: a, align: [{negatives_from: hard, negatives_pool: 19}]}",
    r"align\.s-dpo\.negatives_pool: 19 items are sampled per example, and the hardest 19 of them are used",
    "{name: a, evaluate: {baselines: [popularity, popularity]}}",
    r"evaluate\.baselines: each baseline may be named once, got popularity, popularity",
    "{name: a, sft: {}, rankers: [{kind: llara}]}",
    r"rankers\.LLaRA\.items_from: no earlier ranker is called 'SASRec': name one of random, .*",
    "{name: a, sft: {}, rankers: [{kind: llara, items_from: sft}]}",
    r"rankers\.LLaRA\.items_from: sft has no item vectors: choose an earlier entry of kind sequential",
    "{name: a, rankers: [{kind: sequential}, {kind: llara}, {kind: llara-s-dpo, num_negatives: 20}]}",
    r"rankers\.LLaRA-S-DPO\.num_negatives: 20 negatives, but a candidate set of 20 has only 19; lower it",
    "{name: a, rankers: [{kind: retrieve-then-rank, retriever: zero-shot, ranker: zero-shot}]}",
    r"rankers\.retrieve-then-rank\.retriever: 'zero-shot' only scores titles that it is given",
    "{name: a, rankers: [{kind: chat-rec, retriever: nope}, {kind: morec, name: nope}]}",
    r"rankers\.Chat-REC\.retriever: no earlier ranker is called 'nope': name one of random, .*, or put",
    "{name: a, evaluate: {zero_shot: false, baselines: []}}",
    "evaluate: there is no ranker to evaluate: turn zero_shot on, name baselines, or add sft or align",
)
"""Recipes, each with its message."""


@pytest.mark.parametrize(("text", "message"), zip(WRONG[::2], WRONG[1::2], strict=True))
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=rf"(?s)recipe .*r\.yaml: .*{message}"):
        _load(tmp_path, text)


def test_a_recipe_survives_writing(tmp_path):
    text = "{name: a, seed: 3, data: {source: files, interactions: x.csv, items: y.csv}, sft: {rows: 9}, align: [{}]}"
    recipe = _load(tmp_path, text)
    again = _load(tmp_path, dump_recipe(recipe))
    assert again == recipe
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(recipe.model_dump(mode="json"))  # 1 is not 1.0
    assert yaml.safe_load(dump_recipe(recipe))["align"][0]["beta"] == 1.0


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_our_recipes_are_right(path):
    recipe = load_recipe(path)
    assert recipe.sft
    for name in recipe.model.templates:
        load_template(name, domain=recipe.data.domain or "movies")


def test_rankers_may_build_on_those_before_them(tmp_path):
    text = """
    {name: a, sft: {}, align: [{}], rankers: [
      {kind: sequential}, {kind: morec}, {kind: llara}, {kind: llara-s-dpo},
      {kind: llara-s-dpo, name: again, reference: LLaRA-S-DPO},
      {kind: retrieve-then-rank}, {kind: retrieve-then-rank, name: two, retriever: MoRec, ranker: again},
      {kind: chat-rec, retriever: two}, {kind: chat-rec, name: three, retriever: s-dpo}]}
    """
    assert [r.name for r in _load(tmp_path, text).rankers][-2:] == ["Chat-REC", "three"]


def test_settings_that_change_nothing_are_in_no_key():
    idle, plain = {"save_steps", "eval_steps", "report_to"}, SFTSection(rows=7).decisive()
    assert plain == SFTSection(rows=7).model_dump(exclude=idle | {"metric_for_best_model"})
    watched = {"save_steps": 3, "eval_steps": 2, "report_to": "wandb"}
    assert SFTSection(rows=7, **watched).decisive() == plain
    assert AlignSection(**watched, eval_rows=9).decisive() == AlignSection().decisive()
    for name, value in (("per_device_batch_size", 2), ("gradient_checkpointing", True), ("warmup", 0.1)):
        assert SFTSection(rows=7, **{name: value}).decisive() != plain
    assert SFTSection(rows=7, latest_per_user=2).decisive()["latest_per_user"] == 2
    some = AlignSection(rows=7).decisive()
    assert AlignSection(rows=7, latest_per_user=2).decisive() == some | {"latest_per_user": 2}


def test_what_chooses_the_best_epoch_decides():
    """Validation rows, and how many epochs without a new best are waited for."""
    found = [SFTSection(**asked).decisive() for asked in ({}, {"eval_rows": 9}, {"patience": 1}, {"eval_rows": 0})]
    assert len({json.dumps(d) for d in found}) == 4
    assert SFTSection(eval_rows=0, patience=1).decisive() == SFTSection(eval_rows=0).decisive()


def test_data_paths_are_whole_so_that_the_run_can_name_them(tmp_path, monkeypatch):
    """The same data under each spelling of the recipe's path, and in the recipe that a run keeps of it."""
    (tmp_path / "shop").mkdir()
    recipe = tmp_path / "shop" / "r.yaml"
    recipe.write_text("{name: a, data: {source: files, interactions: log.csv, items: ../items.csv}}")
    monkeypatch.chdir(tmp_path)
    found = [load_recipe(path).data for path in (recipe, Path("shop/../shop/r.yaml"))]
    assert found[0] == found[1]
    assert (found[0].interactions, found[0].items) == (tmp_path / "shop" / "log.csv", tmp_path / "items.csv")
    kept = tmp_path / "run" / "recipe.yaml"
    kept.parent.mkdir()
    kept.write_text(dump_recipe(load_recipe(Path("shop/r.yaml"))))
    assert load_recipe(kept).data == found[0]


def test_the_run_to_update_is_relative_to_the_recipe(tmp_path, monkeypatch):
    """A recipe of before is read, too: its path was relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    for folder in ("shop/run", "new", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("shop", "new"):
        (tmp_path / name / "r.yaml").write_text("{name: a, sft: {}, update: {run: run}}")
    recipe = load_recipe(Path("shop/r.yaml"))
    assert recipe.update.run == tmp_path / "shop" / "run"
    (tmp_path / "kept.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(Path("kept.yaml")).update == recipe.update
    assert load_recipe(Path("new/r.yaml")).update.run == tmp_path / "run"
    (tmp_path / "run").rmdir()
    assert load_recipe(Path("new/r.yaml")).update.run == tmp_path / "new" / "run"


LISTED = "{name: a, sft: {}, align: [{loss: dpo, name: dpo}, {}], rankers: [{kind: sequential}, {kind: llara}]}"


@pytest.mark.parametrize(
    ("override", "place"),
    [
        *(("align.-1.rows=8", ("align", -1, "rows")), ("align.dpo.rows=8", ("align", 0, "rows"))),
        *(("align.s-dpo.rows=8", ("align", 1, "rows")), ("rankers.SASRec.epochs=8", ("rankers", 0, "epochs"))),
        ("evaluate.rows=8", ("evaluate", "rows")),
    ],
)
def test_a_field_goes_by_number_or_by_name(override, place):
    raw = yaml.safe_load(LISTED)
    module.set_field(raw, override)
    for step in place:
        raw = raw[step]
    assert raw == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.rows=8", r"align has 2 entries: align\.0 \(dpo\), align\.1 \(s-dpo\)$"),
        ("align.ipo.rows=8", "align has 2 entries"),
        ("rankers.2.rows=8", r"rankers has 2 entries: rankers\.0 \(SASRec\), rankers\.1 \(LLaRA\)$"),
        ("name.x=8", "name is 'a', which has no fields"),
        ("sft.rows=[", "the part after = is not YAML"),
        ("sft.rows=010", "line 1: 010 is a number in base 8"),
    ],
)
def test_a_field_that_there_is_not(override, message):
    with pytest.raises(ConfigError, match=rf"--set .*: expected FIELD=VALUE such as sft\.rows=100 .*; {message}"):
        module.set_field(yaml.safe_load(LISTED), override)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sft: {rwos: 8}", r"sft\.rwos: .*; did you mean sft\.rows\?$"),
        ("algin: []", r"algin: .*; did you mean align\?$"),
        ("align: [{num_negative: 8}]", r"did you mean align\.0\.num_negatives( or .*)?\?$"),
        ("rankers: [{kind: tallrec, epoch: 8}]", r"did you mean epochs\?$"),
        ("align: [{loss: sdpoo}]", r"align\.0: loss 'sdpoo' is unknown: .*; did you mean s-dpo\?$"),
        ("align: [{negatives_from: unifrom}]", r"align\.0\.negatives_from: .*; did you mean uniform\?$"),
        ("align: [{name: dpo}, {start: dpoo}]", r"no earlier alignment is called 'dpoo'; did you mean dpo\?$"),
        ("align: [{negatives_from: hard, miner: Sas}]\nrankers: [{kind: sequential, name: SAS}]", r"mean SAS\?$"),
        ("rankers: [{kind: blnd}]", r"each entry needs a kind, .*got 'blnd'; did you mean blend\?$"),
        ("rankers: [{kind: blend, parts: [populrity, sft]}]", r"called 'populrity': .*; did you mean popularity\?$"),
        ("data: {split: time-shar}", r"data\.split: .*; did you mean time-share\?$"),
        ("evaluate: {baselines: [item knn]}", r"evaluate\.baselines\.0: .*; did you mean item-kNN\?$"),
        ("preset: fsat", r"preset 'fsat': expected one of .*; did you mean fast\?$"),
        ("sft: {xyz: 8}", r"Extra inputs are not permitted \(given: 8\)$"),
    ],
)
def test_a_misspelt_name_gets_the_one_that_is_meant(tmp_path, text, hint):
    with pytest.raises(ConfigError, match=hint):
        _load(tmp_path, f"name: a\n{text}\n")


PAPERS = [p for p in RECIPES if p.stem.startswith("paper-")]


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_the_recipes_of_the_paper_have_its_form(path):
    recipe = load_recipe(path)
    assert (recipe.model.quantization, recipe.model.objective, recipe.lora.alpha) == ("nf4", "tokens", 32)
    assert load_template(recipe.model.templates[0], domain="generic").shows_candidates
    (s_dpo,) = recipe.align
    assert (s_dpo.num_negatives, s_dpo.global_batch_size, s_dpo.epochs) == (3, 128, 3)
    assert (recipe.data.candidates.size, recipe.data.history_length, recipe.data.min_history) == (20, 10, 3)


def test_a_preset_gives_what_a_recipe_leaves_out(tmp_path):
    recipe = _load(tmp_path, "name: a\npreset: paper\nsft: {epochs: 2}\nlora: null\nmodel: {quantization: none}\n")
    paper = preset("paper")
    own = {"sft": paper["sft"] | {"epochs": 2}, "lora": None, "model": paper["model"] | {"quantization": "none"}}
    assert recipe == checked_recipe(paper | {"name": "a"} | own)
    assert load_recipe(tmp_path / "r.yaml", ["align.s-dpo.rows=8"]).align[0].rows == 8
    with pytest.raises(ConfigError, match="preset 'quick': expected one of baselines, fast, titles, paper"):
        _load(tmp_path, "name: a\npreset: quick\n")


@pytest.mark.parametrize("name", ["baselines", "references"])
def test_baselines_are_read_by_their_old_name(tmp_path, capsys, name):
    recipe = _load(tmp_path, f"name: a\npreset: baselines\nevaluate: {{{name}: [popularity]}}\n")
    assert recipe.evaluate.baselines == ["popularity"]
    assert load_recipe(tmp_path / "r.yaml", [f"evaluate.{name}=[random]"]).evaluate.baselines == ["random"]
    told = "evaluate.references: its name is evaluate.baselines now" in capsys.readouterr().err
    assert told == (name == "references")


@pytest.mark.parametrize("align", ["5", "true", "s-dpo", "{name: s-dpo}"])
def test_an_align_that_is_no_list_is_named_and_nothing_else_is_said(tmp_path, capsys, align):
    with pytest.raises(ConfigError, match=r"r\.yaml: align: "):
        _load(tmp_path, f"name: a\npreset: fast\nalign: {align}\n")
    assert "left out" not in capsys.readouterr().err


def test_the_best_epoch_of_an_alignment_depends_on_its_validation_rows():
    kept = {"load_best_model_at_end": True, "eval_rows": 9}
    decided = AlignSection(**kept).decisive()
    assert decided == AlignSection(**kept, eval_steps=3).decisive()
    assert decided != AlignSection(**kept | {"eval_rows": 8}).decisive()
    assert decided != AlignSection(eval_rows=9).decisive()
    with pytest.raises(ValueError, match="load_best_model_at_end: needs validation examples; set eval_rows"):
        AlignSection(load_best_model_at_end=True)


def test_a_base_in_4_bits_needs_an_adapter():
    raw = {"name": "x", "model": {"quantization": "nf4"}, "lora": None, "sft": {}}
    with pytest.raises(ConfigError, match=r"quantization: nf4 freezes the base, but `lora: null` trains all of its"):
        checked_recipe(raw)
    checked_recipe(raw | {"sft": None})
