"""A tiny run with random adapters, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prefrec.pipeline.opened import Run, open_run
from prefrec_server.app import Settings, create_app
from prefrec_server.engine import Engine
from prefrec_server.server import open_engine
from served_run import write_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory, bpe_tokenizer) -> Path:
    """The run's folder, to be read only."""
    return write_run(tmp_path_factory.mktemp("served"), bpe_tokenizer)


@pytest.fixture(scope="session")
def run(folder) -> Run:
    return open_run(folder)


@pytest.fixture(scope="session")
def engine(run) -> Iterator[Engine]:
    engine = open_engine(run)
    yield engine
    engine.close()


@pytest.fixture
def client(engine, monkeypatch) -> Iterator[TestClient]:
    """A client of the whole application; the engine outlives it."""
    monkeypatch.setattr(engine, "close", lambda timeout=None: None)
    with TestClient(create_app(engine, Settings("tiny", "llama"))) as client:
        yield client
