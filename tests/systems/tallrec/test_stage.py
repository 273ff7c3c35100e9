"""TALLRec in a recipe: a row of the table; with and without ratings."""

import json

import polars as pl

from prefrec.data import read_prepared
from prefrec.pipeline.run import run_recipe
from prefrec_systems.tallrec import Opinions, load_like_template, load_tallrec
from prefrec_systems.tallrec import stage as stage_module

TALLREC = {"kind": "tallrec", "rows": 16, "global_batch_size": 8, "learning_rate": 5e-3, "save_steps": 1}
EVALUATE = {"rows": 6, "generate_rows": 2}


def test_a_row_of_the_table(recipe, alone, check_row, tmp_path):
    run_recipe(alone(TALLREC, evaluate=EVALUATE), tmp_path)
    folder, data = tmp_path / "rankers" / "TALLRec", read_prepared(tmp_path / "data")
    assert json.loads((folder / "log.json").read_text())[-1]["step"] == 2
    template, opinions = load_like_template(None, domain="movies"), Opinions(data.train_interactions, 4.0)
    of = (recipe.model.name, folder / "adapter", data.catalogue, template, opinions)
    rows = check_row(tmp_path, "TALLRec", load_tallrec("TALLRec", *of, loading={"dtype": "float32"}), 6, 1e-5)
    assert all(0 < score < 1 for scores in rows["scores"].to_list() for score in scores)
    assert rows["generated"].null_count() == 6  # its answers are no titles


def test_with_ratings_the_questions_are_about_targets(recipe, alone, tmp_path, monkeypatch):
    asked, inner = [], stage_module.tallrec_dataset
    log = pl.read_csv(recipe.data.interactions)
    log.with_columns(rating=pl.Series([1 + n % 5 for n in range(len(log))])).write_csv(tmp_path / "rated.csv")
    monkeypatch.setattr(stage_module, "tallrec_dataset", lambda of, *rest: asked.append(of) or inner(of, *rest))
    monkeypatch.setattr(stage_module, "train_to_weights", lambda trainer, folder: None)
    rated = recipe.model_dump(mode="json")["data"] | {"interactions": str(tmp_path / "rated.csv")}
    tallrec = {**TALLREC, "rows": None, "eval_rows": 4}
    run_recipe(alone(tallrec, evaluate=EVALUATE, data=rated), tmp_path / "run", until="rankers")
    data = read_prepared(tmp_path / "run" / "data")
    ratings = {(u, i): r for u, i, r in data.train_interactions.select("user_id", "item_id", "rating").iter_rows()}
    (questions,) = asked  # and none about validation rows, whose ratings are not told
    want = {(e.target, ratings[e.user_id, e.target] >= 4) for e in data.train}
    assert {(q.item, q.liked) for q in questions} == want
    assert len(questions) == len(data.train)
