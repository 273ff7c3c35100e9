"""A search over fields: what it tries, what it keeps, how it goes on, and that it never asks test rows."""

import json
from types import SimpleNamespace

import pytest
import yaml

from command import prefrec, succeed
from prefrec.data import read_prepared
from prefrec.errors import ConfigError, ModelError
from prefrec.evaluation import Evaluation, Interval
from prefrec.pipeline import score
from prefrec.recipe import Recipe, load_recipe
from prefrec.runs.results import Results
from prefrec.training.progress import ProgressCallback
from prefrec_lab import tune
from prefrec_lab.tune import Search, SearchedField
from tiny_run import write_recipe

RATES, EPOCHS = "sft.learning_rate=1e-5..1e-2:log", "sft.epochs=1,2,4"


@pytest.fixture
def recipe(place) -> Recipe:
    return Recipe.model_validate(place.recipe | {"align": []})


@pytest.fixture
def runs(monkeypatch):
    """Runs in the place of `run_recipe`: the best has four epochs and the highest rate; those above 5e-3 fail."""
    made = []

    def run_recipe(recipe, folder, until):
        assert until == "evaluate"
        made.append(recipe)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "sft").mkdir(exist_ok=True)
        if recipe.sft.learning_rate > 5e-3:
            raise ModelError("the loss is not finite")
        value = recipe.sft.epochs / 10 + recipe.sft.learning_rate
        interval = Interval(value, value - 0.1, value + 0.1, 40, 40).to_json()
        plain = {"n": 40, "users": 40, "chance": 0.2, "best_reference": None}
        blocks = {"metrics": {"sft": {"ndcg@10": interval}}, "expected": {}, "comparisons": [], "groups": {}}
        evaluation = Evaluation.from_json(blocks | plain | {"audit": {"reason": "a test"}})
        return SimpleNamespace(results=Results(evaluation=evaluation))

    monkeypatch.setattr(tune, "run_recipe", run_recipe)
    return made


def _search(recipe, folder, *fields, ranker=None, metric="ndcg@10"):
    return Search(recipe, [SearchedField.parse(f) for f in fields or (RATES, EPOCHS)], folder, ranker, metric)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a.b=1,2,4", SearchedField("a.b", ("1", "2", "4"))),
        *(("a=x", SearchedField("a", ("x",))), ("a=1..8", SearchedField("a", (), 1, 8))),
        ("a=0.1..2", SearchedField("a", (), 0.1, 2.0)),
        ("a=1e-5..1e-3:log", SearchedField("a", (), 1e-5, 1e-3, log=True)),
    ],
)
def test_fields_are_read(text, field):
    parsed = SearchedField.parse(text)
    assert (parsed, type(parsed.low)) == (field, type(field.low))


def test_trials_ask_validation_rows_and_the_best_recipe_is_written(recipe, runs, tmp_path):
    assert len(_search(recipe, tmp_path).run(12).trials) == 12
    assert {r.evaluate.split for r in runs} == {"validation"}
    assert {(r.evaluate.full_rows, r.evaluate.generate_rows, tuple(r.evaluate.ks)) for r in runs} == {(0, 0, (10,))}
    assert all(1e-5 <= r.sft.learning_rate <= 1e-2 for r in runs)
    best = load_recipe(tmp_path / tune.BEST)
    finished = [r for r in runs if r.sft.learning_rate <= 5e-3]
    want = max(finished, key=lambda r: r.sft.epochs / 10 + r.sft.learning_rate)
    assert (best.sft.epochs, best.sft.learning_rate) == (want.sft.epochs, want.sft.learning_rate)
    assert (best.evaluate, len([*(tmp_path / "trials").iterdir()])) == (recipe.evaluate, 1)


def test_a_table_has_the_best_first_and_failed_ones_last(recipe, runs, tmp_path):
    search = _search(recipe, tmp_path, "sft.learning_rate=1e-3,1e-2", "sft.epochs=1,2")
    grid = search.table(search.run(12))
    assert grid.columns == ["sft.learning_rate", "sft.epochs", "NDCG@10"]
    texts = [[cell.text for cell in cells] for _, cells, _ in grid.rows]
    assert (texts[0], texts[-1][2], len(texts)) == (["1e-3", "2", "0.201"], "failed", 12)
    assert len([r for r in runs if r.sft.learning_rate == 1e-3]) <= 2  # equal values are not run again


def test_a_search_goes_on_where_it_was(recipe, runs, tmp_path):
    first, before = [t.params for t in _search(recipe, tmp_path).run(3).trials], len(runs)
    again = _search(recipe, tmp_path).run(5)
    assert ([t.params for t in again.trials[:3]], len(runs)) == (first, before + 2)
    assert len({json.dumps(t.params) for t in again.trials}) == 5
    _search(recipe, tmp_path).run(5)
    assert len(runs) == before + 2
    with pytest.raises(ConfigError, match="holds a search of another recipe or other fields"):
        _search(recipe, tmp_path, EPOCHS).run(5)


def test_the_verb_asks_no_test_row_and_goes_on_after_a_stop(place, tmp_path, monkeypatch):
    raw = place.recipe | {"align": [], "sft": place.recipe["sft"] | {"eval_rows": 0}}
    options = ("--field", "sft.epochs=1,2", "--trials", 1, "--metric", "hr@3", "--out", tmp_path / "out")
    command = ("lab", "tune", write_recipe(tmp_path, raw), *options)
    whole, predict, asked = ProgressCallback.on_step_end, score.predict, []

    def stop(self, args, state, control, **kwargs):
        whole(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    watched = lambda r, rows, *more, **by: asked.extend(rows) or predict(r, rows, *more, **by)  # noqa: E731
    monkeypatch.setattr(score, "predict", watched)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", stop)
        assert prefrec(*command).code == 130
    done = prefrec(*command)
    assert done.code == 0, done.err
    assert "Resuming from" in done.err
    assert "sft on 20 validation examples of 20 users" in done.out
    assert done.out.endswith(f"Recipe: {tmp_path / 'out' / 'best.yaml'}\n")
    (folder,) = (tmp_path / "out" / "trials").iterdir()
    data = read_prepared(folder / "data")
    assert asked
    assert all(e in data.validation and e not in data.test for e in asked)
    value = json.loads(succeed(*command, "--json"))
    assert value["recipe"] == str(tmp_path / "out" / "best.yaml")
    epochs = yaml.safe_load((folder / "recipe.yaml").read_text())["sft"]["epochs"]
    assert value["best"] == {"sft.epochs": str(int(epochs))}
