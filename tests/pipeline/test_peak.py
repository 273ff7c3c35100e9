"""The expected peak of memory of a run: a sum over arrays, told by `plan`."""

from dataclasses import replace

import numpy as np
import pytest

from command import prefrec
from prefrec.data import PreparedData
from prefrec.pipeline import peak as module
from prefrec.pipeline.peak import BASE, EVALUATED, OF_ANSWER, OF_INTERACTION, peak_of
from prefrec.pipeline.prepare import PrepareStage
from prefrec.pipeline.run import run_recipe
from prefrec.rankers import ease, matrices
from prefrec.recipe import Recipe, dump_recipe

PARTS = ["popularity", "EASE", "item-kNN"]


def _recipe(recipe: Recipe, **changes: object) -> Recipe:
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": []}
    raw["rankers"] = [{"kind": "blend", "parts": PARTS}]
    raw["evaluate"] |= {"baselines": ["popularity", "EASE"], "zero_shot": False, "rows": None}
    return Recipe.model_validate(raw | changes)


@pytest.fixture(scope="module")
def data(recipe, tmp_path_factory) -> PreparedData:
    asked = _recipe(recipe)
    folder = tmp_path_factory.mktemp("peak")
    run_recipe(asked, folder, until="prepare")
    return PrepareStage(asked, folder / "data").read()


def _bytes(shape: tuple[int, ...], dtype: type) -> int:
    return np.broadcast_to(np.zeros((), dtype), shape).nbytes


def test_the_peak_is_the_sum_of_the_arrays_that_are_held(recipe, data):
    log = data.known_interactions("test")
    items, rows, listed = log["item_id"].n_unique(), len(data.validation), len(data.catalogue)
    features = len(PARTS) + 6  # and popularity; that of 30, 90 and 365 days; age; younger than 30 days
    if not data.has_dates:
        features = len(PARTS) + 1
    held = BASE + sum(OF_INTERACTION for _ in range(len(log)))
    blend = _bytes((items, items), np.float32)
    blend += sum(_bytes((rows, listed), np.float64) for _ in PARTS)
    blend += sum(_bytes((rows, listed, features), np.float32) for _ in range(4))
    blend += sum(_bytes((matrices.CELLS_AT_A_TIME,), np.float64) for _ in range(4))
    asked = ["popularity", "EASE", "blend", *(f"blend without {part}" for part in PARTS)]
    evaluation = EVALUATED + sum(_bytes((items, items), np.float32) for _ in range(2))
    evaluation += sum(OF_ANSWER for _ in data.test for _ in asked)
    found = peak_of(_recipe(recipe), data)
    assert (found.log, found.blend, found.evaluation) == (held, blend, evaluation)
    assert found.total == held + max(blend, evaluation)


def test_a_longer_list_of_rankers_and_more_rows_take_more(recipe, data):
    """And a part that is not asked for takes nothing."""
    whole = peak_of(_recipe(recipe), data)
    plain = _recipe(recipe, rankers=[])
    assert peak_of(plain, data).blend == 0
    assert peak_of(plain, data).evaluation < whole.evaluation
    raw = plain.model_dump(mode="json")
    raw["evaluate"] |= {"baselines": ["popularity"], "rows": 3}
    few = peak_of(Recipe.model_validate(raw), data)
    assert few.ease == 0
    assert few.evaluation == EVALUATED + 3 * OF_ANSWER
    longer = replace(data, validation=[*data.validation, *data.validation])
    assert peak_of(_recipe(recipe), longer).blend > whole.blend


def test_the_plan_tells_the_peak_and_whether_this_machine_has_it(recipe, data, tmp_path, monkeypatch):
    asked = _recipe(recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(asked))

    def printed() -> str:
        return " ".join(prefrec("plan", path, "--out", tmp_path / "run").out.split())

    assert "peak" not in printed()  # nothing is prepared
    run_recipe(asked, tmp_path / "run", until="prepare")
    peak = peak_of(asked, data)
    assert f"Expected peak of memory: about {peak.total / 1e9:.1f} GB. With the log" in printed()
    assert "This machine has" not in printed()
    with monkeypatch.context() as little:
        little.setattr(module, "memory_bytes", lambda: peak.total - 1)
        assert "This machine has 0." in printed()
    items = data.known_interactions("test")["item_id"].n_unique()
    monkeypatch.setattr(ease, "MOST_BYTES", 4 * items**2 - 1)
    assert f"EASE will be left out: it inverts a matrix of {items} × {items} items" in printed()
    assert peak_of(asked, data).ease == 0
