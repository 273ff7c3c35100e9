"""`prefrec serve` as a separate process: it listens, answers, and stops cleanly on a signal."""

import errno
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from command import refused


@pytest.fixture
def server(adapted_run):
    """Starts the command; gives the process and its address."""
    started = []

    def start(*options):
        command = [sys.executable, "-m", "prefrec", "serve", str(adapted_run), "--port", "0", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        said = []
        for line in process.stderr:
            said.append(line)
            if "Serving" in line:
                # Loading takes long, and must not be silent.
                assert said[0].startswith("Loading the rankers of ")
                assert said[1].startswith("Loading ")
                assert any("Loading and trying " in told for told in said)
                return process, line.split(" at ")[1].strip()
        raise AssertionError("the server ended before it listened")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def _get(url, data=None, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return answer.read().decode()


def _ask(url):
    question = {"history": ["Red Emma"], "candidates": ["Wild Alien", "Cold Heat"]}
    return json.loads(_get(f"{url}/v1/rank", json.dumps(question).encode(), **{"Content-Type": "application/json"}))


@pytest.mark.long
def test_it_answers_many_by_its_own_names_and_ends_well(server):
    process, url = server("--ranker", "sft", "--ranker", "s-dpo", "--deadline", "300")
    assert json.loads(_get(f"{url}/v1/run", Host="localhost:1"))["rankers"] == ["sft", "s-dpo"]
    with pytest.raises(urllib.error.HTTPError, match="421"):
        _get(f"{url}/v1/run", Host="elsewhere.example")
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(_ask, [url] * 16)]
    assert len({a["ranking"][0]["title"] for a in answers}) == 1
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):  # which asks nothing
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0  # it waits for questions, at most to their deadline, but not for this
    assert "Traceback" not in process.stderr.read()


WORK = """
import signal
import threading

import torch

from prefrec_server import server


class Started:
    def run(self, sockets):
        working = threading.Event()

        def work():
            while True:
                torch.ones(64, 64) @ torch.ones(64, 64)
                working.set()

        threading.Thread(target=work, name="prefrec-reload", daemon=True).start()
        working.wait()
        {ending}


server._run(Started(), None, "Serving")
"""


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("signal.raise_signal(signal.SIGTERM)", id="terminated"),
        pytest.param("raise KeyboardInterrupt", id="interrupted", marks=pytest.mark.long),
    ],
)
def test_a_thread_that_still_opens_a_run_does_not_abort_the_process(ending):
    script = WORK.format(ending=ending)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "Serving\n")


@pytest.mark.long
def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("PREFREC_API_KEY", "sesame")
    process, url = server("--ranker", "zero-shot", "--ui")
    assert "<h1>tiny</h1>" in _get(url)  # the page holds nothing that needs a key
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _get(f"{url}/v1/run")
    assert json.loads(_get(f"{url}/v1/run", Authorization="Bearer sesame"))["rankers"] == ["zero-shot"]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


EMPTY = "is empty: set another one by --api-key or PREFREC_API_KEY, or unset it"
ODD = "has characters other than printable ASCII, such as a space or a line break: "


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [("", (), EMPTY), ("sesame", ("",), EMPTY), ("sesame", ("abc\n",), ODD), ("sesame", ("kéy",), ODD)],
    ids=["empty variable", "empty option", "line break", "letter"],
)
def test_a_key_that_is_empty_or_fits_into_no_header_is_refused_at_once(
    adapted_run, monkeypatch, environment, options, message
):
    monkeypatch.setenv("PREFREC_API_KEY", environment)
    asked = ("serve", adapted_run, *(part for key in options for part in ("--api-key", key)))
    assert f"error: the API key {message}" in refused(*asked)


@pytest.mark.parametrize("given", ["inf", "nan", "86401.0", "0.0"])
def test_a_deadline_that_is_no_time_is_refused_at_once(adapted_run, given):
    told = refused("serve", adapted_run, "--deadline", given, code=2)
    assert f'Invalid value "{given}" for --deadline. Must be ' in told


def test_until_the_model_is_loaded_nobody_is_kept_waiting(adapted_run, monkeypatch):
    """A probe is refused at once."""
    from prefrec_server import server

    seen = []

    def loading(run, rankers, **options):
        with socket.socket() as probe:
            seen.append(probe.connect_ex(("127.0.0.1", port)))
        raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(server, "open_engine", loading)
    with pytest.raises(KeyboardInterrupt):
        server.serve_run(adapted_run, host="127.0.0.1", port=port)
    assert seen == [errno.ECONNREFUSED]
