"""Another run takes the place of the one that is served, and each request is answered by one of them."""

import asyncio
import gc
import os
import signal
import threading
import weakref
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.pipeline.opened import open_run
from prefrec_server import reload, server
from prefrec_server.app import Settings, create_app
from prefrec_server.engine import Engine
from prefrec_server.reload import Opened, Reloading, state_of
from prefrec_server.server import open_engine


class Held:
    """Stands for what a run holds in memory; nothing but the opened run refers to it."""


class Place:
    """A link to one of several folders, each of which is served by an application that answers with its name."""

    def __init__(self, folder):
        self.folder, self.log, self.release = folder / "served", [], asyncio.Event()
        self.held = []
        for name in ("first", "second"):
            (folder / name).mkdir()
        self.point("first")

    def point(self, name):
        draft = self.folder.with_name("draft")
        draft.symlink_to(name)
        draft.replace(self.folder)

    def open(self):
        name = self.folder.resolve().name
        if name == "broken":
            held = Held()  # as a run that was opened before the error
            self.held.append(weakref.ref(held))
            raise DataError("it is damaged")

        @asynccontextmanager
        async def life(app):
            self.log.append(f"{name} starts")
            yield
            self.log.append(f"{name} ends")

        app = FastAPI(lifespan=life)

        @app.get("/")
        async def root():
            return name

        @app.get("/slow")
        async def slow():
            await self.release.wait()
            return name

        return Opened(app, name)

    def reloading(self):
        return Reloading(self.folder, self.open, 10, self.log.append)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.01)
    return Place(tmp_path)


async def _get(app, path="/"):
    """The body of the answer to a request."""
    body = b""

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        nonlocal body
        body += message.get("body", b"")

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return body.decode().strip('"')


@asynccontextmanager
async def _running(app):
    """The lifespan of the application, as a server drives it."""
    messages, started = asyncio.Queue(), asyncio.Event()

    async def send(message):
        started.set()

    life = asyncio.create_task(app({"type": "lifespan"}, messages.get, send))
    await messages.put({"type": "lifespan.startup"})
    await started.wait()
    yield
    await messages.put({"type": "lifespan.shutdown"})
    await life


async def _until(holds):
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_link_that_leads_elsewhere_is_followed_and_the_old_run_ends_after_its_last_answer(place):
    async def live():
        app = place.reloading()
        async with _running(app):
            assert await _get(app) == "first"
            slow = asyncio.create_task(_get(app, "/slow"))
            await asyncio.sleep(0)
            place.point("second")
            await _until(lambda: "served" in place.log)
            assert await _get(app) == "second"
            assert "first ends" not in place.log
            place.release.set()
            assert await slow == "first"
            await _until(lambda: "first ends" in place.log)
        assert place.log == ["first starts", "second starts", "served", "first ends", "second ends"]

    asyncio.run(live())


def test_a_run_that_cannot_be_opened_leaves_the_one_before_and_is_tried_once(place, capfd):
    async def live():
        app = place.reloading()
        async with _running(app):
            (place.folder.parent / "broken").mkdir()
            place.point("broken")
            await _until(lambda: "refused" in place.log)
            await asyncio.sleep(0.1)
            assert [held() for held in place.held] == [None]
            assert await _get(app) == "first"
            place.point("second")
            await _until(lambda: "served" in place.log)
            assert await _get(app) == "second"
        assert place.log.count("refused") == 1

    gc.disable()  # so that no other collection comes first
    try:
        asyncio.run(live())
    finally:
        gc.enable()
    said = " ".join(capfd.readouterr().err.split())
    assert "→ broken is not served: it is damaged; still serving first" in said
    assert "Now serving second; before: first" in said


def test_the_hangup_signal_opens_the_run_again(place):
    async def live():
        app = place.reloading()
        async with _running(app):
            os.kill(os.getpid(), signal.SIGHUP)
            await _until(lambda: "first ends" in place.log)
            assert await _get(app) == "first"
        assert place.log == ["first starts", "first starts", "served", "first ends", "first ends"]

    before = signal.getsignal(signal.SIGHUP)
    try:
        asyncio.run(live())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_evaluated_again_counts_as_another_once_it_is_sealed(place):
    folder = place.folder.resolve()
    seal = folder / "seal.json"
    seal.write_text("{}")
    app = place.reloading()
    assert not app._has_changed()
    seal.unlink()
    assert state_of(folder) == (folder, None)
    assert not app._has_changed()
    (folder / "draft").write_text("{}")
    (folder / "draft").replace(seal)
    assert app._has_changed()
    place.folder.unlink()  # as while a link is being replaced
    assert state_of(place.folder) is None
    assert not app._has_changed()


def test_a_closed_engine_lets_go_of_models_and_data(run_with_rankers):
    engine = open_engine(open_run(run_with_rankers))
    held = [engine.data, engine._scorer, *engine._scorer.models.values(), engine._scorer.others["fused"]]
    held = [weakref.ref(thing) for thing in held]
    with TestClient(create_app(engine, Settings("tiny", "llama"))) as client:
        answer = client.post("/v1/recommend", json={"history": ["Red Emma"], "ranker": "fused", "k": 3})
        assert answer.status_code == 200
    del client, engine
    gc.collect()
    assert [thing() for thing in held] == [None] * len(held)


def test_an_engine_whose_rankers_fail_is_closed(run, monkeypatch):
    held = []

    def fail(self, rankers):
        held.append(weakref.ref(self))
        raise ModelError("it is damaged")

    monkeypatch.setattr(Engine, "warm_up", fail)
    with pytest.raises(ModelError, match="it is damaged"):
        open_engine(run, ["popularity"])
    gc.collect()
    assert [engine() for engine in held] == [None]


def test_an_engine_without_an_application_is_closed(adapted_run, monkeypatch):
    before = {*threading.enumerate()}
    monkeypatch.setattr(server, "create_app", Mock(side_effect=ConfigError("it is damaged")))
    with pytest.raises(ConfigError, match="it is damaged"):
        server.serve_run(adapted_run, ["popularity"], host="127.0.0.1", port=0)
    assert not [t.name for t in {*threading.enumerate()} - before if t.name == "prefrec-batcher"]


def test_every_answer_names_the_folder_of_its_run(engine, monkeypatch):
    app = create_app(engine, Settings("tiny", "llama", folder="shop.30 é"))
    client = TestClient(app, raise_server_exceptions=False)
    monkeypatch.setattr(engine, "example", lambda row: 1 / 0)
    assert client.get("/v1/example").status_code == 500
    for path in ("/healthz", "/v1/run", "/nowhere", "/v1/example"):
        assert client.get(path).headers["x-prefrec-run"] == "shop.30%20%C3%A9"
