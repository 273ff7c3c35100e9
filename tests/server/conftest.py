"""A tiny run with random adapters, served."""

from collections.abc import Iterator

import pytest

from prefrec.pipeline.opened import Run, open_run
from prefrec_server.engine import Engine
from prefrec_server.server import open_engine


@pytest.fixture(scope="session")
def run(adapted_run) -> Run:
    return open_run(adapted_run)


@pytest.fixture(scope="session")
def engine(run) -> Iterator[Engine]:
    engine = open_engine(run)
    yield engine
    engine.close()
