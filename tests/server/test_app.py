"""The HTTP side: routes, limits, keys, errors, counters; schemathesis against the OpenAPI."""

import asyncio
import json
import re
import threading
import time
from itertools import product

import pytest
from starlette.testclient import TestClient

from baselines import SERVED_BASELINES
from generated_requests import PATHS, ask
from prefrec.data import user_histories
from prefrec_server import middleware
from prefrec_server.app import Settings, create_app
from prefrec_server.batcher import QueueFullError
from prefrec_server.bodies import MAX_BODY, RankRequest
from prefrec_server.middleware import Guard, Telemetry
from prefrec_server.server import open_engine

QUESTION = {"history": ["Red Emma", "i7"], "candidates": ["Wild Alien", "cold heat", "i20"]}


def _client(engine, **settings):
    return TestClient(create_app(engine, Settings("tiny", "llama", **settings)))


async def _status(app, receive, **scope):
    """The status that an application answers a POST to /v1/rank with, which comes by `receive`."""
    sent = []

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/v1/rank", "headers": []} | scope, receive, send)
    return sent[0]["status"]


@pytest.fixture
def lasting(engine, monkeypatch):
    """The engine, which outlives its servers."""
    monkeypatch.setattr(engine, "close", lambda timeout=None: None)
    return engine


@pytest.fixture
def client(lasting):
    """A client of the whole application."""
    with _client(lasting) as client:
        yield client


def _error(answer, status, code):
    assert answer.status_code == status, answer.text
    problem = answer.json()["error"]
    assert problem["code"] == code
    assert "input" not in problem
    return problem


def test_rank(client, engine):
    body = client.post("/v1/rank", json=QUESTION | {"ranker": "sft"}).json()
    asked = engine.rank(RankRequest(**QUESTION, ranker="sft"))
    assert body == asked.answer(engine.submit(asked, 60).result()).model_dump()
    assert [r["rank"] for r in body["ranking"]] == [1, 2, 3]
    assert sum(r["share"] for r in body["ranking"]) == pytest.approx(1)


def test_explain(client):
    answer = client.post("/v1/explain", json=QUESTION | {"item": "Cold Heat"})
    assert [i["title"] for i in answer.json()["influences"]] == ["Red Emma", "Red Eye"]


def test_docs_name_the_description_of_the_api(client):
    answer = client.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert "/openapi.json" in answer.text


@pytest.mark.parametrize(("path", "by"), [("also-bought", "item-kNN"), ("similar", "title TF-IDF")])
def test_related_items(client, path, by):
    answer = client.post(f"/v1/{path}", json={"item": "Red Emma", "k": 2, "ranker": "sft"}).json()
    assert (answer["by"], answer["item"]["item_id"]) == (by, "i2")
    assert [line["rank"] for line in answer["items"]] == [1, 2]
    _error(client.post(f"/v1/{path}", json={"item": "Nothing"}), 404, "unknown_item")


def test_recommend(client):
    answer = client.post("/v1/recommend", json={"history": ["Red Emma"], "k": 59, "ranker": "dpo"}).json()
    assert {r["item_id"] for r in answer["ranking"]} == {f"i{n}" for n in range(60) if n != 2}
    assert answer["exact"]
    _error(client.post("/v1/recommend", json={"history": [], "k": 0}), 422, "invalid")


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/recommend"])
def test_the_history_is_in_the_answer_on_request(client, path):
    asked = QUESTION if path == "/v1/rank" else {"history": QUESTION["history"]}
    plain, shown = (client.post(path, json=asked | more).json() for more in ({}, {"show_history": True}))
    assert plain["history"] is None
    assert [item["item_id"] for item in shown["history"]] == ["i2", "i7"]
    assert plain | {"history": shown["history"]} == shown


def test_recommend_to_a_user_under_rules(client, run):
    user = run.data.test[2].user_id
    taken = user_histories(run.data, [user])[user]
    where = "title like 'Red %' or (title in ('Old Heat'))"
    asked = {
        "user_id": user,
        "k": 60,
        "where": where,
        "deny": ["i4"],
        "at_most": 1,
        "per": "title",
        "show_history": True,
    }
    answer = client.post("/v1/recommend", json=asked).json()
    assert [i["item_id"] for i in answer["history"]] == taken[-4:]
    titles = run.data.catalogue.titles
    allowed = {i for i, t in titles.items() if t.startswith("Red ") or t == "Old Heat"} - {*taken, "i4"}
    assert {r["item_id"] for r in answer["ranking"]} == allowed


@pytest.mark.parametrize(
    ("change", "status", "code", "message"),
    [
        ({"user_id": "nobody"}, 404, "unknown_user", "an empty one gets the items that are popular now"),
        ({"user_id": ["u01"]}, 422, "invalid", "body.user_id: Input should be a valid string"),
        ({"k": -1}, 422, "invalid", "body.k: Input should be greater than or equal to 1"),
        ({"k": 2.5}, 422, "invalid", "body.k: Input should be a valid integer"),
        ({"k": True}, 422, "invalid", "body.k: Input should be a valid integer"),
        ({"k": "3"}, 422, "invalid", "body.k: Input should be a valid integer"),
        ({"at_most": True, "per": "title"}, 422, "invalid", "body.at_most: Input should be a valid integer"),
        ({"exclude_seen": 0}, 422, "invalid", "body.exclude_seen: Input should be a valid boolean"),
        ({"exclude_seen": "no"}, 422, "invalid", "body.exclude_seen: Input should be a valid boolean"),
        (
            {"exclude_sen": True},
            422,
            "invalid",
            "body.exclude_sen: Extra inputs are not permitted; did you mean exclude_s",
        ),
        ({"colour": 3}, 422, "invalid", "body.colour: Extra inputs are not permitted"),
        ({"where": "genre = 'x'"}, 409, "rules", 'unable to find column "genre"'),
        ({"where": "x" * 513}, 422, "invalid", "body.where: String should have at most 512"),
        ({"boost": {"genre": {"x": 2}}}, 409, "rules", "boost 'genre': the catalogue has no such column of single"),
        ({"boost": {"title": {"x": "2"}}}, 422, "invalid", "body.boost.title.x: Input should be a valid number"),
        ({"boost": {"title": {"x": True}}}, 422, "invalid", "body.boost.title.x: Input should be a valid number"),
        ({"boost": {"title": {"x": 0}}}, 422, "invalid", "body.boost.title.x: Input should be greater than or"),
        ({"at_most": 2}, 409, "rules", "at_most, per: give both or neither"),
    ],
)
def test_rules_that_are_refused(client, change, status, code, message):
    assert message in _error(client.post("/v1/recommend", json=change), status, code)["message"]


MANY = {f"{n:x}": 0 for n in range(20_000)}


@pytest.mark.parametrize(
    "body",
    [{"allow": [1] * 80_000}, {"deny": [1] * 80_000}, {"boost": {"title": MANY}}, MANY],
    ids=["allow", "deny", "boost", "fields"],
)
def test_a_body_with_many_errors_is_refused_in_one(client, body):
    """Each error of its own takes time in which no other request is answered."""
    for path, needed in (("/v1/recommend", {}), ("/v1/similar", {"item": "i2"}), ("/v1/also-bought", {"item": "i2"})):
        problem = _error(client.post(path, json=needed | body), 422, "invalid")
        assert re.match(r"body: \d+ values or fields are wrong", problem["message"])


@pytest.mark.parametrize(
    "where",
    [
        "E'\\' x' = replace(title, 'a', 'b')", "\"it's\" = replace(title, 'a', 'b')",
        "`it's` = replace(title, 'a', 'b') or title = '''", "replace/**/(title, 'e', 'ee') = 'x'",
        "$$'$$ = replace(title, '$$', '')", "title = 'a' -- ' or upper(title) = 'A'",
        "title = 'a' # ' or upper(title) = 'A'", "'it' = 'a' or \"replace\" (title, 'a', 'b') = 'b'",
    ],
)  # fmt: skip
def test_functions_hide_in_no_text(client, where):
    answer = client.post("/v1/recommend", json={"where": where})
    assert "functions, comments, backslashes, $ and # are not allowed" in _error(answer, 409, "rules")["message"]


def test_texts_in_conditions_hold_anything(client):
    where = "title <> '/* a(b) */ replace(title, x) It''s -- y' and (title in ('x (1)') or not (item_id = '#1'))"
    answer = client.post("/v1/recommend", json={"history": ["Red Emma"], "where": where, "k": 1})
    assert answer.status_code == 200, answer.text


def test_requests_have_ids(client):
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(3)}) == 3
    assert client.post("/v1/rank", json={}, headers={"X-Request-ID": "a-1_B"}).headers["x-request-id"] == "a-1_B"
    for given in ("a b", "x" * 65, "<b>", "a\x1b[1m"):
        made = client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", made)


def test_the_access_log_tells_of_no_person(lasting, capsys):
    with _client(lasting, access_log=True) as client:
        client.get("/v1/items", params={"query": "secret"}, headers={"X-Request-ID": "r1"})
        client.post("/v1/recommend", json={"user_id": "secret"})
        client.request("SECRET", "/v1/secret")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(x["method"], x["path"], x["status"]) for x in lines] == [
        ("GET", "/v1/items", 200), ("POST", "/v1/recommend", 404), ("other", "other", 404),
    ]  # fmt: skip
    assert lines[0]["request"] == "r1"
    assert "secret" not in json.dumps(lines).lower()
    assert {*lines[0]} == {"time", "request", "method", "path", "status", "seconds"}


def test_users_by_the_beginning_of_their_ids(client, run):
    everyone = sorted({*run.data.train_interactions["user_id"], *run.data.held_out_interactions["user_id"]})
    for query in ("", everyone[3], everyone[-1][:1], "nobody"):
        found = client.get("/v1/users", params={"query": query, "limit": 4}).json()["users"]
        assert found == [user for user in everyone if user.startswith(query)][:4]


def test_items_run_and_example(client):
    first, _ = client.get("/v1/items", params={"query": "red em", "limit": 2}).json()["items"]
    assert first == {"item_id": "i2", "title": "Red Emma"}
    run, rankers = client.get("/v1/run").json(), ["s-dpo", "dpo", "sft", "zero-shot", *SERVED_BASELINES]
    assert run == {
        "run": "tiny",
        "model": "llama",
        "rankers": rankers,
        "for_new": "s-dpo",
        "models": rankers[:4],
        "items": 60,
    }
    example = client.get("/v1/example", params={"row": 41}).json()
    assert (example["row"], example["rows"], len(example["candidates"])) == (1, 40, 6)


def test_no_base_model_is_named_where_no_language_model_is_served(run):
    engine = open_engine(run, ["popularity"])
    with _client(engine) as client:
        found = client.get("/v1/run").json()
    assert (found["model"], found["models"]) == ("", [])


def test_unknown_items_come_with_near_ones(client):
    problem = _error(client.post("/v1/rank", json=QUESTION | {"history": ["Red Ema", "zzzz"]}), 404, "unknown_item")
    first, second = problem["items"]
    assert first["given"] == "Red Ema"
    assert {"item_id": "i2", "title": "Red Emma"} in first["near"]
    assert second == {"given": "zzzz", "near": []}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/recommend", {"histroy": ["i2"]}, "body.histroy: Extra inputs are not permitted; did you mean history?"),
        ("/v1/recommend", {"history": ["i2"], "where_": ""}, "did you mean where?"),
        ("/v1/rank", {"History": ["i2"], "candidates": ["i3"]}, "did you mean history?"),
        ("/v1/similar", {"item": "i2", "zzzzzzz": 1}, "body.zzzzzzz: Extra inputs are not permitted"),
        ("/v1/similar", {"item": "i2", "k" * 5000: 1}, "Extra inputs are not permitted"),
    ],
)
def test_an_unknown_field_comes_with_the_one_that_was_meant(client, path, body, message):
    assert _error(client.post(path, json=body), 422, "invalid")["message"].endswith(message)


def test_a_body_that_is_not_said_to_be_json(client):
    problem = _error(client.post("/v1/rank", content=json.dumps(QUESTION)), 415, "no_json")
    assert "no content-type" in problem["message"]
    assert "send the header content-type: application/json" in problem["message"]


def test_a_body_that_is_not_utf_8(client):
    sent = {"content": b'{"history": ["\xff"]}', "headers": {"content-type": "application/json"}}
    assert _error(client.post("/v1/rank", **sent), 400, "no_json")["message"] == "the body is not JSON in UTF-8"


def test_a_body_that_is_too_long_is_not_read(client):
    endless = (b" " * (MAX_BODY // 8) for _ in range(10))
    for sent in (
        {"content": b" " * (MAX_BODY + 1)},
        {"content": endless},
        {"content": b"{}", "headers": {"Content-Length": "2x"}},
    ):
        _error(client.post("/v1/rank", **sent), 413, "body_too_long")


def test_a_body_that_does_not_come_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.01)
    guard = Guard(client.app, Telemetry(), None)
    assert asyncio.run(_status(guard, lambda: asyncio.sleep(60))) == 408


def test_state_and_errors_of_routing(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    for path in ("/v1/nothing", "/../../etc/passwd", "/"):
        problem = _error(client.get(path), 404, "not_found")
        assert "/openapi.json describes the API, and with --ui the web page is at /" in problem["message"]
    told = "send {}; /openapi.json describes the API"
    assert _error(client.get("/v1/rank"), 405, "method_not_allowed")["message"] == told.format("POST")
    assert _error(client.post("/v1/run"), 405, "method_not_allowed")["message"] == told.format("GET")
    _error(client.get("/v1/items", params={"limit": 1000}), 422, "invalid")


def test_every_answer_keeps_browsers_strict(client):
    for answer in (client.get("/healthz"), client.post("/v1/rank", json=QUESTION), client.get("/v1/nothing")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_page_elsewhere_can_neither_ask_nor_read(client):
    """A form or script of another site may post plain text without asking first; such a body is none of ours."""
    other = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
    _error(client.post("/v1/rank", content=json.dumps(QUESTION), headers=other), 415, "no_json")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answers = [client.options("/v1/rank", headers=other | asked), client.get("/v1/run", headers=other)]
    assert [a.status_code for a in answers] == [405, 200]
    assert not any(h.startswith("access-control-") for a in answers for h in a.headers)


def test_the_key(lasting):
    assert "se-same" not in repr(Settings("tiny", "llama", api_key="se-same"))
    with _client(lasting, api_key="se-same") as client:
        wrong = ("Bearer nothing", b"Bearer s\xc3\xa9", "Basic se-same")
        paths = ("/v1/run", "/v1/items", "/v1/users", "/metrics")
        for headers, path in product(({}, *({"Authorization": given} for given in wrong)), paths):
            refused = client.get(path, headers=headers)
            _error(refused, 401, "unauthorised")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/rank", json=QUESTION).status_code == 401
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/run", headers={"Authorization": "Bearer se-same"}).status_code == 200
        schema = client.get("/openapi.json").json()  # what it shows are no user's items, as the next test says
        assert schema["paths"]["/v1/rank"]["post"]["security"] == [{"HTTPBearer": []}]


@pytest.fixture
def held(run):
    """An engine whose worker waits for `go`; two requests may queue."""
    engine = open_engine(run, ["sft"], max_queue=2)
    go, begun = threading.Event(), threading.Event()
    work = engine.batcher._work

    def hold(kind, questions):
        begun.set()
        assert go.wait(20)
        return work(kind, questions)

    engine.batcher._work = hold
    yield engine, go, begun
    go.set()
    engine.close()


def test_a_full_queue_is_429_and_a_lost_deadline_504(held):
    engine, go, begun = held
    with _client(engine, deadline=0.3) as client:
        asked = engine.rank(RankRequest(**QUESTION))
        first = engine.submit(asked, 60)
        assert begun.wait(20)
        _error(client.post("/v1/rank", json=QUESTION), 504, "deadline")
        waiting = [engine.submit(asked, 60) for _ in range(2)]  # the one that was given up has made room
        refused = client.post("/v1/rank", json=QUESTION)
        _error(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert "prefrec_queue_requests 2.0" in client.get("/metrics").text
        go.set()
        assert all(f.result(20) for f in (first, *waiting))
        assert client.post("/v1/rank", json=QUESTION).status_code == 200


def test_requests_that_wait_to_be_encoded_are_counted_too(held):
    """Else a crowd would pile up in front of the queue, and none be refused."""
    engine, go, _ = held
    slow, encoding = threading.Event(), threading.Event()

    def make():
        encoding.set()
        assert slow.wait(20)
        return engine.rank(RankRequest(**QUESTION))

    first, second = engine.prepare(make), engine.prepare(make)
    assert encoding.wait(20)
    with _client(engine) as client:
        _error(client.post("/v1/rank", json=QUESTION), 429, "queue_full")
        assert second.cancel()  # it had not begun: its place is free
        third = engine.prepare(lambda: engine.rank(RankRequest(**QUESTION)))
        slow.set()
        assert first.result(20).questions == third.result(20).questions
        go.set()
        assert client.post("/v1/rank", json=QUESTION).status_code == 200


def test_a_client_that_goes_away_leaves_its_place(held):
    engine, go, begun = held
    app, body = _client(engine).app, json.dumps(QUESTION).encode()

    async def ask_and_leave(leave):
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        more = {"raw_path": b"/v1/rank", "query_string": b"", "http_version": "1.1", "scheme": "http"}
        return await _status(app, receive, headers=headers, **more)

    async def story():
        busy = engine.submit(engine.rank(RankRequest(**QUESTION)), 60)
        await asyncio.to_thread(begun.wait, 20)
        leave = asyncio.Event()
        two = [asyncio.create_task(ask_and_leave(leave)) for _ in range(2)]
        while engine.batcher.waiting < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            engine.batcher.check_room()
        leave.set()
        assert await asyncio.gather(*two) == [499, 499]
        engine.batcher.check_room(1)  # room for two
        go.set()
        return busy.result(20)

    assert asyncio.run(story())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("[::1]:8000", 200), ("LOCALHOST", 200),
        ("evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421),
    ],
)  # fmt: skip
def test_a_server_without_a_key_answers_to_its_own_names(lasting, host, status):
    """A page elsewhere may point its own name at this machine, and then is of the same origin."""
    with _client(lasting, hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as client:
        answer = client.get("/v1/run", headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        _error(answer, 421, "unknown_host")


@pytest.mark.parametrize("path", ["/v1/run/", "/v1/items/?query=a", "/healthz/"])
def test_no_redirect_leads_to_the_host_that_a_client_names(client, path):
    answer = client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
    _error(answer, 404, "not_found")
    assert "location" not in answer.headers


def test_a_server_that_has_shut_down_has_closed_its_engine_and_is_not_ready(run):
    engine = open_engine(run, ["sft"])
    with _client(engine) as client:
        assert engine.batcher.alive
    assert not engine.batcher.alive
    with _client(engine) as client:
        _error(client.get("/readyz"), 503, "stopping")
        refused = client.post("/v1/rank", json=QUESTION)
        _error(refused, 503, "stopping")
        assert refused.headers["retry-after"] == "5"
        assert client.get("/healthz").status_code == 200


def test_what_was_not_foreseen_stays_inside(client, engine, monkeypatch, capsys):
    monkeypatch.setattr(engine, "rank", lambda body: 1 / 0)
    outside = TestClient(client.app, raise_server_exceptions=False)
    problem = _error(outside.post("/v1/rank", json=QUESTION), 500, "internal")
    strict = outside.post("/v1/rank", json=QUESTION).headers
    assert "division" not in problem["message"]
    assert strict["x-request-id"]
    assert "default-src 'none'" in strict["content-security-policy"]
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert problem["message"].rpartition(" ")[2] in told  # the request's id


def test_metrics(run):
    telemetry = Telemetry()
    with _client(open_engine(run, ["sft"], on_pass=telemetry.on_pass), telemetry=telemetry) as client:
        for _ in range(3):
            client.post("/v1/rank", json=QUESTION)
        client.post("/v1/rank", json={})
        client.get("/v1/invented")
        text, end = "", time.monotonic() + 60
        # A pass is counted after its answers are sent. There are two to warm up, and three requests.
        while "prefrec_pass_requests_count 5.0" not in text and time.monotonic() < end:
            text = client.get("/metrics").text
    assert "prefrec_pass_requests_count 5.0" in text
    assert 'prefrec_requests_total{path="/v1/rank",status="200"} 3.0' in text
    assert 'prefrec_requests_total{path="/v1/rank",status="422"} 1.0' in text
    assert 'prefrec_requests_total{path="other",status="404"} 1.0' in text
    assert "invented" not in text
    assert 'prefrec_request_seconds_count{path="/v1/rank"} 4.0' in text


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_the_schema_says(client, path):
    """Every generated request is answered in a documented way, and never with a 5xx."""
    assert ask(client.app, path, examples=40) >= 1
