"""The time of baselines and blends grows with examples under test and for validation, baselines and parts."""

import pytest

from prefrec.pipeline import table_price
from prefrec.pipeline.table_price import tables_seconds
from prefrec.recipe import Recipe

BLEND = {"kind": "blend", "parts": ["popularity", "title TF-IDF"]}


def test_it_grows_with_what_is_asked(data, monkeypatch):
    monkeypatch.setattr(table_price, "seconds_per_score", lambda data: 1e-3)

    def seconds(*rankers, **evaluate) -> float:
        section = {"zero_shot": False, "references": ["popularity", "item-kNN"]} | evaluate
        recipe = Recipe.model_validate({"name": "a", "rankers": rankers, "evaluate": section})
        return tables_seconds(recipe, data)

    under_test = seconds() - seconds(full_rows=0)
    each = 2 * table_price.BASELINE * len(data.catalogue) * 1e-3
    assert under_test == pytest.approx(each * len(data.test))
    assert seconds() - seconds(rows=len(data.test) // 2) == pytest.approx(under_test / 2)
    assert seconds(references=["popularity", "item only"]) > 2 * seconds()
    assert seconds(BLEND | {"rows": 2}) < seconds(BLEND)
    assert seconds() < seconds(BLEND) < seconds(BLEND | {"parts": ["popularity", "title TF-IDF", "item-kNN"]})
    ranked_for_validation = seconds(full_rows=0) - seconds(full_rows=0, references=["item only"])
    assert ranked_for_validation == pytest.approx(each * len(data.validation))
