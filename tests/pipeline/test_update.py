"""Warnings of what an update's data have that was probably not meant."""

from pathlib import Path

import polars as pl
import pytest

from prefrec.data import PreparedData
from prefrec.intake import PrepareConfig, prepare
from prefrec.pipeline.update import warn_of_changes

DAY, START = 86_400, 1_700_000_000
TITLES = {f"i{n}": f"Thing {n}" for n in range(12)}
LOG = [(f"u{u}", f"i{(u + k) % 12}", START + DAY * k) for u in range(8) for k in range(6)]


def _prepared(folder: Path, more: list[tuple[str, str, int]], titles: dict[str, str]) -> PreparedData:
    log, items = folder / "log.csv", folder / "items.csv"
    pl.DataFrame([*LOG, *more], ["user_id", "item_id", "timestamp"], orient="row").write_csv(log)
    pl.DataFrame({"item_id": [*titles], "title": [*titles.values()]}).write_csv(items)
    config = {"interactions": log, "items": items, "min_history": 1, "candidates": {"size": 4}}
    return prepare(PrepareConfig.model_validate({"source": "files"} | config), as_codes=True)


@pytest.mark.parametrize(("days", "is_told"), [(3 * 365, True), (181, True), (179, False), (-9, False)])
def test_new_interactions_much_older_than_the_log_are_told(tmp_path, capsys, days, is_told):
    before = _prepared(tmp_path, [], TITLES)
    end = START + 5 * DAY
    new = [(f"u{u}", f"i{(u + 6) % 12}", end - days * DAY) for u in range(3)]
    warn_of_changes(before, _prepared(tmp_path, new, TITLES))
    told = (
        "warning: update: 3 of 3 new interactions are more than 180 days older than the end of the log before; check"
    )
    assert (told in " ".join(capsys.readouterr().err.split())) is is_told


def test_a_late_interaction_among_many_is_not_told(tmp_path, capsys):
    new = [(f"v{u}", f"i{k}", START + DAY * (6 + k)) for u in range(4) for k in range(5)]
    warn_of_changes(
        _prepared(tmp_path, [], TITLES), _prepared(tmp_path, [*new, ("u0", "i9", START - 900 * DAY)], TITLES)
    )
    assert capsys.readouterr().err == ""


def test_other_titles_of_known_ids_are_told(tmp_path, capsys):
    before = _prepared(tmp_path, [], TITLES)
    warn_of_changes(before, _prepared(tmp_path, [], TITLES | {"new": "Newcomer"}))
    assert capsys.readouterr().err == ""
    warn_of_changes(before, _prepared(tmp_path, [], TITLES | {"i3": "Other"}))
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "1 of 12 items have another title than in the run before, such as 'i3' (before 'Thing 3', now 'Other')"
        in told
    )
    assert "exchanged" not in told
    reverse = dict(zip(TITLES, reversed(TITLES.values()), strict=True))
    warn_of_changes(before, _prepared(tmp_path, [], reverse))
    told = " ".join(capsys.readouterr().err.split())
    assert "12 of 12 items have another title" in told
    assert "and 12 of the titles were those of other items: are ids exchanged?" in told
