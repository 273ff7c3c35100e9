"""Connections: which are held, which are closed, and how soon a server ends beside them."""

import asyncio
import resource
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from prefrec_server import server

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost"
PROBE = HALF + b"\r\n\r\n"
LARGE = 1 << 25
OK = b"HTTP/1.1 200 OK"
PATIENCE = 60
"""Seconds that a test waits for what must come; a busy machine may take some of them."""
ASKED, RELEASED = threading.Event(), threading.Event()
"""A request for /slow has arrived; it may be answered."""


async def app(scope, receive, send):
    """Answers /large with more than the kernel's buffers hold, and what has a body only after it."""
    if scope["type"] == "lifespan":
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        ASKED.set()
        await asyncio.to_thread(RELEASED.wait, PATIENCE)
    body = bytes(LARGE) if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread. Its timers run by a clock that tests move, so that a busy machine is not late.

    It waits for requests for longer than tests wait for its end, and keeps idle connections for 600 seconds.
    """

    def __init__(self, listener, monkeypatch):
        self.address, self.ahead = listener.getsockname(), 0.0
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: time.monotonic() + self.ahead)
        monkeypatch.setattr(server, "HEADER_SECONDS", 300.0)
        monkeypatch.setattr(server, "READ_SECONDS", 300.0)
        self.made = server.server_for(app, deadline=10 * PATIENCE)
        self.made.config.timeout_keep_alive = 600
        self.thread = threading.Thread(target=self.made.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def pass_time(self, seconds):
        self.ahead += seconds

    @property
    def held(self):
        """The connections, as the server sees them."""
        return list(self.made.server_state.connections)

    def stop(self):
        """Tell it to end, and wait for that; False if it does not."""
        self.made.should_exit = True
        self.thread.join(PATIENCE)
        return not self.thread.is_alive()


@pytest.fixture
def running(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Running(listener, monkeypatch)
        yield running
        running.stop()


@pytest.fixture
def connect(running):
    with ExitStack() as stack:

        def connect(*sent):
            connection = stack.enter_context(socket.create_connection(running.address, timeout=PATIENCE))
            for part in sent:
                connection.sendall(part)
            return connection

        yield connect


def _until(holds):
    """Wait for the server's thread."""
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def _answer(connection):
    received = b""
    while not received.endswith((b"ok", b"}}")):
        part = connection.recv(1000)
        assert part, "the server has closed the connection"
        received += part
    return received.partition(b"\r\n")[0]


def _rest(connection):
    received = bytearray()
    with suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            received += part
    return received


def test_probes_are_answered_beside_more_half_open_connections_than_are_held(connect):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(4096, limits[1])), limits[1]))
    try:
        held = [connect(HALF) for _ in range(1030)]
        assert _answer(connect(PROBE)) == OK
        assert _rest(held[0]) == b""  # the oldest has made room
        held[-1].sendall(b"\r\n\r\n")
        assert _answer(held[-1]) == OK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_headers_have_to_come_in_time_however_many_bytes_come(running, connect):
    silent, dripping, kept = connect(), connect(b"G"), connect(PROBE)
    for _ in range(3):
        assert _answer(kept) == OK  # so the server has read what the others sent before
        running.pass_time(90)
        dripping.sendall(b"E")
        kept.sendall(PROBE)
    assert len(running.held) == 3
    running.pass_time(90)
    assert [_rest(silent), _rest(dripping)] == [b"", b""]
    assert _answer(kept) == OK


def test_a_kept_connection_answers_again(running, connect):
    connection = connect(PROBE)
    for _ in range(2):
        assert _answer(connection) == OK
        running.pass_time(400)
        connection.sendall(HALF)
        connection.sendall(b"\r\n\r\n")
    assert _answer(connection) == OK


def test_stopping_waits_for_no_connection_that_has_no_request(running, connect, monkeypatch):
    monkeypatch.setattr(server, "LAST_SECONDS", 0.1)
    assert _answer(connect(PROBE)) == OK
    connect()
    connect(HALF)
    connect(b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    assert connect(PROBE.replace(b"/healthz", b"/large")).recv(1)
    assert running.stop()


def test_the_last_answer_says_that_it_is_the_last(running, connect):
    ASKED.clear()
    RELEASED.clear()
    kept = connect(PROBE)
    assert b"connection: close" not in kept.recv(1000).lower()
    connection = connect(PROBE.replace(b"/healthz", b"/slow"))
    assert ASKED.wait(PATIENCE)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    _rest(kept)  # is closed when the server begins to stop
    RELEASED.set()
    answer = _rest(connection).lower()
    stopping.join()
    assert answer.startswith(OK.lower())
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"ok")


def test_a_client_that_does_not_read_is_given_up(running, connect):
    read, unread = (connect(PROBE.replace(b"/healthz", b"/large")) for _ in range(2))
    received = len(read.recv(1 << 20))
    while received < LARGE:
        part = read.recv(1 << 20)
        assert part
        received += len(part)
    _until(lambda: [c.reading is not None for c in running.held] == [True, True])
    _until(lambda: sorted(c.reading.cancelled() for c in running.held) == [False, True])
    running.pass_time(400)
    _until(lambda: len(running.held) == 1)
    assert len(_rest(unread)) < LARGE  # what was sent before it was given up
    read.sendall(PROBE)
    assert _answer(read) == OK


def test_a_request_before_the_last_answer_closes_the_connection(connect):
    received = _rest(connect(PROBE * 30))
    assert received.count(b"200 OK") == 1
    assert received.endswith(b"ok")


@pytest.mark.parametrize(("path", "status"), [(b"/healthz", b"200"), (b"/readyz", b"200"), (b"/", b"503")])
def test_places_are_kept_for_probes(running, connect, monkeypatch, path, status):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    RELEASED.set()
    post = HALF.replace(b"GET /healthz", b"POST /slow") + b"\r\nContent-Length: 9\r\n\r\n"
    held = [connect(post) for _ in range(4)]
    _until(lambda: [c.has_request for c in running.held] == [True] * 4)
    assert _answer(connect(PROBE.replace(b"/healthz", path))).split()[1] == status
    for connection in held:
        connection.sendall(b"123456789")
        assert _answer(connection) == OK


def test_places_for_probes_are_bounded_too(connect, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server, "PROBE_CONNECTIONS", 3)
    oldest, *held = [connect(HALF) for _ in range(6)]
    with suppress(ConnectionResetError):
        assert oldest.recv(1) == b""
    held[-1].sendall(b"\r\n\r\n")
    assert _answer(held[-1]) == OK
