"""Jobs on made-up data and a tiny random model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefrec.data import write_prepared
from prefrec.intake import PrepareConfig, prepare
from prefrec_lab.bench.job import Job
from prefrec_lab.bench.settings import BenchSettings
from prefrec_lab.bench.workload import make_workload
from tiny_run import write_shop


@pytest.fixture(scope="session")
def shop_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench-data")
    shop = write_shop(folder / "shop")
    config = {"source": "files", "domain": "movies", "candidates": {"size": 24}, "history_length": 4}
    write_prepared(prepare(PrepareConfig.model_validate({**config, **shop})), folder / "data")
    return folder / "data"


@pytest.fixture
def settings(shop_data) -> Callable[..., BenchSettings]:
    """Makes settings of a tiny bench; changes as keywords."""
    tiny = {"model": "random:tiny", "data": shop_data, "batch_size": 3, "titles": 5, "threads": 1, "cpu": True}
    return lambda **changes: BenchSettings.model_validate(tiny | changes)


@pytest.fixture
def job(settings) -> Callable[..., Job]:
    """Makes a job: `job("steps", "published", 3, sequences=8)`."""

    def make(section: str, method: str, negatives: int, **changes: Any) -> Job:
        asked = settings(**changes)
        return Job(asked, section, method, negatives, make_workload(asked, negatives))

    return make
