"""MoRec in a recipe: a row of the table whose scores are those of the weights that it left."""

from prefrec.data import read_prepared
from prefrec.pipeline.run import run_recipe
from prefrec_systems.morec import load_morec


def test_a_row_of_the_table(recipe, alone, check_row, tmp_path):
    morec = {"kind": "morec", "encoder": recipe.model.name, "hidden_size": 8, "inner_size": 16, "n_layers": 1}
    evaluate = {"rows": 8, "zero_shot": False, "generate_rows": 0}
    run_recipe(alone(morec | {"epochs": 2}, evaluate=evaluate), tmp_path)
    asked = load_morec(tmp_path / "rankers" / "MoRec", read_prepared(tmp_path / "data").catalogue)
    check_row(tmp_path, "MoRec", asked, 8)
    assert "MoRec" in (tmp_path / "report.html").read_text(encoding="utf-8")
