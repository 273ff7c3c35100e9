"""The shared types."""

from __future__ import annotations

import polars as pl
import pytest

from prefrec.data import Catalogue, PreparedData, RankingExample, examples_to_frame, frame_to_examples
from prefrec.errors import DataError

EXAMPLE = RankingExample("u", ("a",), ("b", "c"), "c")
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ["a", "b"], "title": ["Air", "Bush"]}))


def test_examples_round_trip_through_a_frame() -> None:
    assert frame_to_examples(examples_to_frame([EXAMPLE])) == [EXAMPLE]
    assert frame_to_examples(examples_to_frame([])) == []
    assert EXAMPLE.target_index == 1


def test_catalogue() -> None:
    assert CATALOGUE.ids == ["a", "b"]
    assert CATALOGUE.titles_of(["b", "a"]) == ["Bush", "Air"]
    with pytest.raises(DataError, match="item 'z' is not in the catalogue of 2 items"):
        CATALOGUE.titles_of(["z"])


def test_prepared_data_knows_its_splits() -> None:
    data = PreparedData(CATALOGUE, [EXAMPLE], [], [], pl.DataFrame())
    assert data.split("train") == [EXAMPLE]
    assert data.domain == "generic"
    with pytest.raises(DataError, match="unknown split 'dev': expected train, validation or test"):
        data.split("dev")
