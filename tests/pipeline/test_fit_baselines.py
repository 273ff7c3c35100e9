"""Which interactions choose the settings of baselines, and which they count."""

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared, write_prepared
from prefrec.intake import PrepareConfig, prepare
from prefrec.pipeline.score import fit_baselines
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.window import WindowCooccurrenceRanker
from prefrec.sections import EvaluateSection, ModelSection
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
    return {r.name: r.regularisation if isinstance(r, EASERanker) else r.settings for r in rankers}


def chosen_on(log, data):
    """The settings that validation examples choose on a log, by name."""
    fits = (WindowCooccurrenceRanker.fit, EASERanker.fit)
    return settings(fit(log, validation=data.validation) for fit in fits)


def test_validation_targets_are_not_in_the_log_that_chooses_settings(data):
    both = data.known_interactions("test")
    honest = chosen_on(data.train_interactions, data)
    # This test says something only where the longer log, which holds the answers, would choose otherwise.
    assert chosen_on(both, data) != honest
    found = fit_baselines(data, EvaluateSection(split="test", references=NAMES), 0)
    assert settings(found) == honest
    # The counts are of both.
    decay, exponents, half_life = honest[WindowCooccurrenceRanker.name]
    twin = WindowCooccurrenceRanker.fit(both, decay=decay, exponents=exponents, half_life=half_life)
    rows = data.test[:5]
    window = next(r for r in found if isinstance(r, WindowCooccurrenceRanker))
    for own, expected in zip(window.score(rows), twin.score(rows), strict=True):
        np.testing.assert_allclose(own, expected)
    inputs = RunInputs(data, "key", ModelSection(name="smollm2-135m"), None, 0)
    assert settings(inputs.fit_baselines(both, NAMES)) == honest
