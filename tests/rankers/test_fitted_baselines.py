"""Which interactions choose the settings of baselines, which they count, and how often."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared, write_prepared
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers import ease
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.sections import ModelSection
from prefrec.stages.inputs import RunInputs

NAMES = [WindowCooccurrenceRanker.name, EASERanker.name]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A log in which pairs of items follow each other: items 2k and 2k + 1."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for user in range(40):
        pairs = rng.permutation(10)[:4]
        items = [f"i{2 * pair + side}" for pair in pairs for side in (0, 1)]
        rows += [(f"u{user}", item, 100 * user + time) for time, item in enumerate(items)]
    columns = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / "log.csv")
    titles = {"item_id": [f"i{n}" for n in range(20)], "title": [f"Item {n}" for n in range(20)]}
    pl.DataFrame(titles).write_csv(folder / "items.csv")
    config = {"source": "files", "interactions": folder / "log.csv", "items": folder / "items.csv"}
    write_prepared(
        prepare(
            PrepareConfig.model_validate(config | {"history_length": 4, "candidates": {"kind": "uniform", "size": 8}})
        ),
        folder / "data",
    )
    return read_prepared(folder / "data")


def settings(rankers):
    """Name → chosen settings."""
    return {r.name: r.settings for r in rankers}


def chosen_on(log, data):
    """The settings that validation examples choose on a log, by name."""
    fits = (WindowCooccurrenceRanker.fit, EASERanker.fit)
    return settings(fit(log, validation=data.validation) for fit in fits)


def test_validation_targets_are_not_in_the_log_that_chooses_settings(data):
    both = data.known_interactions("test")
    honest = chosen_on(data.train_interactions, data)
    # This test says something only where the longer log, which holds the answers, would choose otherwise.
    assert chosen_on(both, data) != honest
    found = FittedBaselines(data, 0).before("test", NAMES)
    assert settings(found) == honest
    # The counts are of both.
    twin = WindowCooccurrenceRanker.fit(both, **honest[WindowCooccurrenceRanker.name])
    rows = data.test[:5]
    window = next(r for r in found if isinstance(r, WindowCooccurrenceRanker))
    for own, expected in zip(window.score(rows), twin.score(rows), strict=True):
        np.testing.assert_allclose(own, expected)


@pytest.fixture
def inversions(monkeypatch):
    """The penalties of all matrices that EASE inverts: a trial each in a choice, and one for each fit."""
    penalties, invert = [], ease._weights

    def counted(gram, penalty):
        penalties.append(penalty)
        return invert(gram, penalty)

    monkeypatch.setattr(ease, "_weights", counted)
    return penalties


CHOICE = len(ease.GRID)


@pytest.mark.parametrize("order", [("validation", "test"), ("test", "validation")])
def test_a_baseline_is_fitted_once_for_a_log_and_its_settings_are_chosen_once(data, inversions, order):
    inputs = RunInputs(data, "key", ModelSection(name="smollm2-135m"), None, 0)
    again = inputs.refit()
    for _ in range(2):
        for split in order:
            found = inputs.baseline("EASE", split)
            assert found is inputs.baselines.before(split, NAMES)[0]
        # A refit counts validation interactions before all examples, and its validation examples are gone.
        assert (
            again.baseline("EASE", "validation") is again.baseline("EASE", "test") is inputs.baseline("EASE", "test")
        )
    own = 1 if order[0] == "test" else 0  # EASE of the training log chose the settings, and was not kept
    assert len(inversions) == CHOICE + 2 + own
    inputs.forget(rankers=True)
    assert inputs.baseline("EASE", "test").settings == found.settings
    assert len(inversions) == CHOICE + 3 + own


def test_counts_of_other_logs_have_the_chosen_settings(data, inversions):
    fitted = FittedBaselines(data, 0)
    honest = chosen_on(data.train_interactions, data)
    del inversions[:]
    half = data.train_interactions.head(len(data.train_interactions) // 2)
    for _ in range(2):
        assert settings(fitted.counting(half, NAMES)) == honest
    assert len(inversions) == CHOICE + 3


def test_what_the_training_log_cannot_have_is_absent_there_alone(data, monkeypatch):
    few, many = (data.known_interactions(split)["item_id"].n_unique() for split in ("validation", "test"))
    assert few == many, "the longer log has more items: EASE would be absent there"
    monkeypatch.setattr(ease, "MOST_BYTES", ease.matrix_bytes(few - 1))
    fitted = FittedBaselines(data, 0)
    for split in ("validation", "test"):
        names = [r.name for r in fitted.before(split, [*NAMES, "popularity"])]
        assert names == ["popularity", "window co-occurrence"]
