"""Configurations: combinations that make no sense are refused by field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefrec.data import PrepareConfig, config_error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "netflix"}, r"source: Input should be 'movielens-100k'.*\(given: 'netflix'\)"),
        ({"sed": 1}, r"sed: Extra inputs are not permitted \(given: 1\)"),
        ({"candidates": {"size": 1}}, r"candidates\.size: .* \(given: 1\)"),
        ({"source": "lastfm-hetrec"}, "path: source lastfm-hetrec needs the folder"),
        ({"source": "files"}, "interactions, items: source files needs a log and a catalogue"),
        ({"source": "files", "interactions": "a", "items": "b", "path": "c"}, "path: source files takes"),
        ({"source": "goodreads"}, "path: source goodreads needs a folder, or interactions and items"),
        ({"interactions": "x.csv"}, "interactions: only for source files or goodreads, not movielens"),
        ({"users": "x.csv"}, "users: only for source files, not movielens-100k; leave it out"),
        ({"split": "given"}, "split: movielens-100k has no split of its own"),
        ({"source": "lastfm-published", "path": "x", "split": "time"}, "split: lastfm-published comes with its own"),
        ({"source": "lastfm-published", "path": "x", "user_core": 5}, "user_core, item_core: .* cannot be filtered"),
        ({"columns": {"user": "u"}}, "columns: only for source files or windows, not movielens-100k; leave it out"),
        ({"encoding": "latin-1"}, "encoding: only for source files or movielens-csv or windows, not"),
        ({"duplicate_titles": "merge"}, "duplicate_titles: only for source files or goodreads or windows, not"),
        ({"read_only": False}, "read_only: only for source goodreads, not movielens-100k"),
        ({"source": "lastfm-hetrec", "path": "x", "missing_titles": "drop"}, "missing_titles: only for source files"),
        (
            {"source": "goodreads", "path": "x", "items": "y"},
            "interactions, items: name both, or neither beside path",
        ),
        ({"windows": "all"}, "windows: only for split time, user or time-share, not leave-last-out"),
    ],
)
def test_config_error_names_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as e:
        PrepareConfig(**values)
    error = config_error(e.value)
    with pytest.raises(type(error), match=f"^{message}"):
        raise error


def test_every_field_is_described() -> None:
    fields = PrepareConfig.model_json_schema()
    for model in (fields, *fields["$defs"].values()):
        assert all("description" in f for f in model["properties"].values())


def test_what_a_source_does_not_take_may_be_written_out() -> None:
    """As in the recipe that a run keeps."""
    for source in ("movielens-100k", "lastfm-hetrec", "goodreads"):
        config = PrepareConfig(source=source, path="x")  # type: ignore[arg-type]
        assert PrepareConfig(**config.model_dump(mode="json")) == config


def test_split_of_the_source() -> None:
    assert PrepareConfig().split_name == "leave-last-out"
    assert PrepareConfig(source="lastfm-published", path="x").split_name == "given"  # type: ignore[arg-type]
