"""prefrec.pipeline.checks: whether the data have the rows of every stage is known before the first is trained."""

import re

import pytest

from prefrec.errors import ConfigError, TokenizerError
from prefrec.pipeline.checks import check_rows
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from tiny_run import TITLES, write_shop


@pytest.fixture
def changed(recipe):
    def change(s_dpo=None, **sections) -> Recipe:
        raw = recipe.model_dump(mode="json")
        raw["align"][1] |= s_dpo or {}
        raw |= {k: raw[k] | own if isinstance(own, dict) else own for k, own in sections.items()}
        return Recipe.model_validate(raw)

    return change


WRONG = (
    {"s_dpo": {"skip_rows": 2000, "latest_per_user": 3}},
    r"align\.s-dpo\.skip_rows: 2000, but there are only 120 examples \(align\.s-dpo\.latest_per_user: 3\): ",
    {"model": {"templates": ["history"]}, "sft": {"skip_rows": 40}},
    r"sft\.skip_rows: 40, but there are only 40 examples: lower it",
    {"s_dpo": {"negatives_from": "reference", "num_negatives": 58}},
    r"align\.s-dpo\.num_negatives: 58 negatives, but only \d+ of the 60 items are left .*lower it to \d+",
    {"s_dpo": {"negatives_from": "uniform", "num_negatives": 59}},
    r"align\.s-dpo\.num_negatives: 59 negatives, but only \d+ of the \d+ items are left",
    {"rankers": [{"kind": "tallrec", "skip_rows": 9000}]},
    r"rankers\.TALLRec\.skip_rows: 9000, but there are only \d+ examples: lower it",
)
"""Sections, each with its message."""


@pytest.mark.parametrize(("sections", "message"), zip(WRONG[::2], WRONG[1::2], strict=True))
def test_nothing_is_trained_where_a_later_stage_has_no_rows(changed, tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        run_recipe(changed(**sections), tmp_path / "run")
    shown = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")}
    assert shown == {"recipe.yaml", "environment.json", "data"}
    run_recipe(changed(**sections), tmp_path / "run", until="prepare")


def test_nothing_is_trained_where_a_title_does_not_fit(changed, recipe, tmp_path):
    """Whoever is asked about it, and however late."""
    shop = write_shop(tmp_path / "shop", titles=[*TITLES[:-1], "Never Ending " * 200])
    files = {name: str(path) for name, path in shop.items()}
    with pytest.raises(TokenizerError, match=r"(?s)max_length is \d+: .*raise max_length.*Never Ending"):
        run_recipe(changed(data=files), tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()


def test_fewer_histories_than_asked_for_are_told(changed, tmp_path, capsys):
    """However many rows they are cut into."""
    section = {"rows": 500, "skip_rows": 30, "titles": 3, "epochs": 1, "eval_rows": 0}
    run_recipe(changed(model={"templates": ["history"]}, sft=section, align=[]), tmp_path / "run", until="sft")
    told = capsys.readouterr().err
    assert "sft: training on 10 examples, not 500: there are no more after skip_rows: 30" in told
    assert "30 training examples" in told


def test_all_but_the_last_row_may_be_skipped(changed, data):
    check_rows(changed(sft={"skip_rows": len(data.train) - 1}), data)
    with pytest.raises(ConfigError, match=f"only {len(data.train)} examples"):
        check_rows(changed(sft={"skip_rows": len(data.train)}), data)


def test_dropout_that_is_switched_off_is_told(changed, tmp_path, capsys):
    few = {"rows": 8, "epochs": 1, "eval_rows": 0}
    run_recipe(changed(lora={"dropout": 0.1}, sft=few, align=[]), tmp_path / "run", until="sft")
    assert "lora.dropout: 0.1 has no effect in sft, where dropout is turned off" in capsys.readouterr().err
    on = few | {"disable_dropout": False}
    run_recipe(changed(lora={"dropout": 0.1}, sft=on, align=[]), tmp_path / "run", until="sft")
    assert "lora.dropout" not in capsys.readouterr().err


def test_layers_that_are_left_out_of_a_model_that_reads_candidates_are_told(changed, tmp_path, capsys):
    few = {"rows": 8, "epochs": 1, "eval_rows": 0}
    run_recipe(changed(model={"layers": 1}, sft=few, align=[]), tmp_path / "run", until="sft")
    told = capsys.readouterr().err
    assert re.search(r"model\.layers: 1 leaves layers out, and the template \S+ shows candidates", told)
    without = {"layers": 1, "templates": ["history"]}
    run_recipe(changed(model=without, sft=few, align=[]), tmp_path / "run", until="sft")
    assert "model.layers" not in capsys.readouterr().err


def test_a_tracker_that_is_not_installed(changed, data, monkeypatch):
    monkeypatch.setattr("prefrec.pipeline.checks.find_spec", lambda name: None if name == "mlflow" else name)
    check_rows(changed(sft={"report_to": "wandb"}), data)
    with pytest.raises(ConfigError, match=r"align\.s-dpo\.report_to: pip install mlflow, or remove report_to"):
        check_rows(changed(s_dpo={"report_to": "mlflow"}), data)
