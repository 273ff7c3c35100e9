"""`prefrec serve` as a process of its own: it listens, answers, and ends well when it is told to."""

import errno
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from command import prefrec

QUESTION = {"history": ["Red Emma"], "candidates": ["Wild Alien", "Cold Heat"]}


@pytest.fixture
def server(folder):
    """Starts the command; gives the process and its address."""
    started = []

    def start(*options):
        command = [sys.executable, "-c", "from prefrec.cli import main; main()", "serve", str(folder), "--port", "0"]
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        started.append(process)
        for line in process.stderr:
            if "Serving" in line:
                return process, line.split(" at ")[1].strip()
        raise AssertionError("the server ended before it listened")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def _get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()


def _ask(url, body=QUESTION):
    request = urllib.request.Request(
        f"{url}/v1/rank", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_it_answers_many_by_its_own_names_and_ends_well(server):
    process, url = server("--ranker", "sft", "--ranker", "s-dpo")
    assert json.loads(_get(f"{url}/v1/run", Host="localhost:1"))["rankers"] == ["sft", "s-dpo"]
    with pytest.raises(urllib.error.HTTPError, match="421"):
        _get(f"{url}/v1/run", Host="elsewhere.example")
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(_ask(url))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert len({a["ranking"][0]["title"] for a in answers}) == 1
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):  # which asks nothing
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert time.monotonic() - start < 5  # 2 where nothing else runs
    assert "Traceback" not in process.stderr.read()


def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("PREFREC_API_KEY", "sesame")
    process, url = server("--ranker", "zero-shot", "--ui")
    assert "<h1>tiny</h1>" in _get(url)  # the page holds nothing that needs a key
    with pytest.raises(urllib.error.HTTPError, match="401"):
        _get(f"{url}/v1/run")
    assert json.loads(_get(f"{url}/v1/run", Authorization="Bearer sesame"))["rankers"] == ["zero-shot"]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("options", [(), ("--api-key", "")])
def test_an_empty_key_is_not_taken_for_none(folder, monkeypatch, options):
    monkeypatch.setenv("PREFREC_API_KEY", "" if not options else "sesame")
    done = prefrec("serve", folder, *options)
    assert (done.code, done.out) == (1, "")
    assert "error: the API key is empty: set another one by --api-key or PREFREC_API_KEY, or unset it" in done.err


@pytest.mark.parametrize("key", ["abc\n", "kéy"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(folder, key):
    done = prefrec("serve", folder, "--api-key", key)
    assert (done.code, done.out) == (1, "")
    assert (
        "error: the API key has characters other than printable ASCII, such as a space or a line break: " in done.err
    )


def test_until_the_model_is_loaded_nobody_is_kept_waiting(folder, monkeypatch):
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
        server.serve_run(folder, host="127.0.0.1", port=port)
    assert seen == [errno.ECONNREFUSED]
