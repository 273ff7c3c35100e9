"""The time of baselines and blends grows with examples, baselines and parts."""

import pytest

from prefrec.pipeline import table_price
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.table_price import tables_seconds

BLEND = {"kind": "blend", "parts": ["popularity", "title TF-IDF"]}


def test_it_grows_with_what_is_asked(data, monkeypatch):
    monkeypatch.setattr(table_price, "seconds_per_score", lambda data: 1e-3)

    def seconds(*rankers, **evaluate) -> float:
        section = {"zero_shot": False, "references": ["popularity", "item-kNN"]} | evaluate
        recipe = Recipe.model_validate({"name": "a", "rankers": rankers, "evaluate": section})
        return tables_seconds(recipe, data)

    assert seconds(rows=len(data.test) // 2) == pytest.approx(seconds() / 2, rel=0.1)
    assert seconds(references=["popularity", "item only"]) > 2 * seconds()
    assert seconds(BLEND | {"rows": 2}) < seconds(BLEND)
    assert seconds() < seconds(BLEND) < seconds(BLEND | {"parts": ["popularity", "title TF-IDF", "item-kNN"]})
    assert seconds(full_rows=0) < 0.1 * seconds()
