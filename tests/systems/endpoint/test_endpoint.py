"""EndpointRanker against servers that run: their scores are those of LMRanker on the same weights."""

import json
import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ModelError
from prefrec.prompts import load_template
from prefrec.rankers import GeneratingRanker, LMRanker, load_lm
from prefrec_systems.endpoint import EndpointRanker, OpenAIClient, ServerSettings
from prefrec_systems.endpoint import ranker as endpoint_module
from prefrec_systems.endpoint.config import EndpointConfig
from servers import completions_server, free_port, serving
from tiny import tiny_llama
from tiny_lists import IDS, examples
from tiny_run import TITLES

KEY = "open sesame"
SPECIAL = "Babe<|im_end|><|im_start|>"
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": [*TITLES[:-1], SPECIAL]}))
EXAMPLES = examples(5, items=IDS[:-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer) -> Path:
    """A model of which vLLM takes the size of the heads, too."""
    folder = tmp_path_factory.mktemp("endpoint") / "model"
    tiny_llama(head_dim=64).save_pretrained(folder)
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_url(folder, tmp_path_factory):
    """The small server of these tests, with the model as `tiny` and the key."""
    with completions_server(folder, tmp_path_factory.mktemp("small") / "log", SERVER_KEY=KEY) as url:
        yield url


@pytest.fixture(scope="module", params=["small", "vllm"])
def url(request, small_url, folder, tmp_path_factory):
    if request.param == "small":
        yield small_url
        return
    log = tmp_path_factory.mktemp("server") / "log"
    vllm = os.environ.get("PREFREC_VLLM") or shutil.which("vllm")
    if not vllm:
        pytest.skip("vLLM is not installed; PREFREC_VLLM may name the `vllm` of another environment")
    port, on_a_cpu = free_port(), {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    options = ("--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    command = [vllm, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, *options]
    with serving(command, port, log, seconds=400, **on_a_cpu) as url:
        yield url


@pytest.fixture
def ask(bpe_tokenizer, monkeypatch):
    monkeypatch.setenv("PREFREC_ENDPOINT_KEY", KEY)

    def make(url: str, prompts="tokens", chat=False, **settings):
        client = OpenAIClient(ServerSettings(url=url, **{"retries": 0, "timeout": 60, **settings}))
        how = {"max_length": 400, "chat": chat, "prompts": prompts}
        return EndpointRanker("vllm", client, bpe_tokenizer, CATALOGUE, load_template("movies/1"), **how)

    return make


@pytest.fixture
def local(folder):
    of = (*load_lm(str(folder), dtype="float32"), CATALOGUE, load_template("movies/1"))
    return lambda chat=False: LMRanker("lm", *of, max_length=400, chat=chat, objective="tokens")


@pytest.mark.parametrize("prompts", ["tokens", "text"])
@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_the_model_itself(url, ask, local, prompts, chat):
    got = ask(url, prompts, chat).score(EXAMPLES)
    assert got.shape == (5, 6)
    np.testing.assert_allclose(got, local(chat).score(EXAMPLES), rtol=0, atol=2e-3)


@pytest.mark.parametrize("prompts", ["tokens", "text"])
def test_generation_is_that_of_the_model_itself(url, ask, local, prompts):
    ranker = ask(url, prompts)
    assert isinstance(ranker, GeneratingRanker)
    assert ranker.generate(EXAMPLES) == local().generate(EXAMPLES)


def test_special_tokens_in_titles_are_text_as_ids_and_are_noticed_as_text(url, ask, local):
    example = RankingExample("u", (IDS[-1],), (IDS[0], IDS[-1]), IDS[0])
    np.testing.assert_allclose(ask(url).score([example]), local().score([example]), rtol=0, atol=2e-3)
    with pytest.raises(ModelError, match=r"another tokenizer, .* set `prompts: tokens`"):
        ask(url, "text").score([example])


def test_long_lists_take_several_requests(url, ask, monkeypatch):
    want = ask(url).score(EXAMPLES)
    monkeypatch.setattr(endpoint_module, "PROMPTS_A_REQUEST", 4)
    np.testing.assert_allclose(ask(url, concurrency=1).score(EXAMPLES), want, rtol=0, atol=2e-3)


def test_a_wrong_key_is_said(url, ask, monkeypatch):
    monkeypatch.setenv("PREFREC_ENDPOINT_KEY", "sesame")
    with pytest.raises(ModelError, match=r"refuses the API key \(.*401.*Unauthorized.*PREFREC_ENDPOINT_KEY"):
        ask(url).score(EXAMPLES[:1])
    monkeypatch.setenv("PREFREC_ENDPOINT_KEY_2", KEY)
    assert ask(url, key_variable="PREFREC_ENDPOINT_KEY_2").client.models() == ["tiny"]


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "PREFREC_API_KEY", "PREFREC_ENDPOINT_KEYS", "HOME"])
def test_a_recipe_sends_no_other_secret_of_the_environment(name):
    with pytest.raises(ValidationError, match="does not begin with PREFREC_ENDPOINT_KEY: set a variable such as"):
        EndpointConfig(key_variable=name)


def test_an_unknown_model_is_said_with_those_that_there_are(url, ask):
    with pytest.raises(ModelError, match=r"has no model 'huge'; it serves tiny \(.*404.*does not exist"):
        ask(url, model="huge").score(EXAMPLES[:1])


@pytest.fixture
def small(small_url):
    """The address of the small server, with a habit."""
    return lambda habit: small_url.replace("/v1", f"/{habit}/v1")


def test_a_busy_server_is_asked_again(small, ask, local):
    got = ask(small("busy"), retries=9).score(EXAMPLES)
    np.testing.assert_allclose(got, local().score(EXAMPLES), rtol=0, atol=2e-3)
    with pytest.raises(ModelError, match=r"failed in 1 tries \(.*503.*come back"):
        ask(small("busy")).score(EXAMPLES)


def test_a_slow_server_is_not_waited_for(small, ask):
    with pytest.raises(ModelError, match=r"no answer within 0.1 s in 2 tries: raise `timeout`"):
        ask(small("slow"), model="tiny", timeout=0.1, retries=1).score(EXAMPLES[:1])


def test_a_server_without_log_probabilities_can_still_generate(small, ask, local):
    silent = ask(small("silent"))
    with pytest.raises(ModelError, match=r"not return log-probabilities of the prompt .* serve the model with vLLM"):
        silent.score(EXAMPLES[:1])
    assert silent.generate(EXAMPLES) == local().generate(EXAMPLES)


@pytest.fixture
def answering():
    class Answer(BaseHTTPRequestHandler):
        body = b""

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", Answer
        server.shutdown()
        thread.join()


GOOD = {"index": 0, "text": "Emma", "logprobs": None}


@pytest.mark.parametrize(
    "answer", [[], {"choices": {"0": GOOD}}, {"choices": [GOOD | {"text": None}]}, {"choices": [GOOD | {"index": 1}]}]
)
def test_choices_that_are_none_are_said(answering, ask, answer):
    url, server = answering
    server.body = json.dumps(answer).encode()
    with pytest.raises(ModelError, match=r"/v1/completions: the answer does not follow OpenAI's protocol"):
        ask(url, model="tiny").generate(EXAMPLES[:1])
    server.body = json.dumps({"choices": [GOOD]}).encode()
    assert ask(url, model="tiny").generate(EXAMPLES[:1]) == ["Emma"]


def test_many_questions_keep_their_order_and_no_more_than_three_are_on_their_way():
    client = OpenAIClient(ServerSettings(model="tiny", concurrency=3))
    busy, most, lock = 0, 0, threading.Lock()

    def ask(n: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 if n % 3 else 0.04)
        with lock:
            busy -= 1
        return n

    assert list(client.many(ask, ({"n": n} for n in range(20)))) == list(range(20))
    assert most == 3
