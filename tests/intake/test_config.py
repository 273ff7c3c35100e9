"""Configurations: combinations that make no sense are refused by field."""

import pytest
from pydantic import ValidationError

from prefrec.intake import PrepareConfig, sources
from prefrec.settings import config_error

pytest.importorskip("prefrec_lab", reason="cases name sources of prefrec-lab")


def test_sources_of_the_lab_are_told_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(sources, "entry_points", lambda group: [])
    sources.source_kind.cache_clear()
    with pytest.raises(ValidationError, match=r"LastFM and Goodreads come with `pip install \./lab` in a clone"):
        PrepareConfig(source="lastfm-hetrec")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "netflix"}, r"source: Input should be 'movielens-100k'.*\(given: 'netflix'\)"),
        ({"source": "movielens-csv"}, "path: source movielens-csv needs the folder"),
        ({"source": "files"}, "interactions, items: source files needs a log and a catalogue"),
        ({"source": "files", "interactions": "a", "items": "b", "path": "c"}, "path: source files uses"),
        (
            {"interactions": "x.csv"},
            r"interactions: name the source that uses it with --source, such as files .*is movielens-100k",
        ),
        ({"split": "given"}, "split: movielens-100k has no split of its own"),
        (
            {"source": "goodreads-windows", "path": "x", "split": "time"},
            "split: goodreads-windows comes with its own",
        ),
        ({"fold": 1}, "fold: only for split time, not leave-last-out"),
        ({"source": "windows", "path": "x", "user_core": 5}, "user_core, item_core: .* cannot be filtered"),
        ({"columns": {"user": "u"}}, "columns: name the source that uses it with --source"),
        ({"source": "lastfm-hetrec", "path": "x", "missing_titles": "drop"}, "missing_titles: source lastfm-hetrec"),
        ({"windows": "all"}, "windows: only for split time, user or time-share, not leave-last-out"),
    ],
)
def test_config_error_names_the_field(values, message):
    with pytest.raises(ValidationError) as e:
        PrepareConfig(**values)
    error = config_error(e.value)
    with pytest.raises(type(error), match=f"^{message}"):
        raise error


def test_every_field_is_described():
    fields = PrepareConfig.model_json_schema()
    for model in (fields, *fields["$defs"].values()):
        assert all("description" in f for f in model["properties"].values())


def test_what_a_source_does_not_take_may_be_written_out():
    """As in the recipe that a run keeps."""
    for source in ("movielens-100k", "lastfm-hetrec", "goodreads"):
        config = PrepareConfig(source=source, path="x")  # type: ignore[arg-type]
        assert PrepareConfig(**config.model_dump(mode="json")) == config


def test_split_of_the_source():
    assert PrepareConfig().split_name == "leave-last-out"
    assert PrepareConfig(source="windows", path="x").split_name == "given"  # type: ignore[arg-type]
