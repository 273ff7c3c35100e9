"""A shop's nights: a run that is served, an update that takes its place, a bad one, the way back, and cleaning up.

Clients ask all the time. No request may fail, and every answer must be wholly of the run that it names.
"""

import http.client
import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from itertools import cycle, groupby

import polars as pl
import pytest

from command import refused, succeed
from prefrec.recommender import Recommender
from tiny_run import ITEMS, write_recipe

HISTORIES = [["i1", "i2"], ["i7"], ["i30", "i32", "i34"], ["i59"], []]
CLIENTS = 3


class Client(threading.Thread):
    """Asks for recommendations on one connection until it is told to stop."""

    def __init__(self, port, first):
        super().__init__(daemon=True)
        self.port, self.first, self.done = port, first, threading.Event()
        self.answers = []
        """Of each request: history, status, folder of the run that answered, and the items with their scores."""

    def run(self):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            self._ask(connection)

    def _ask(self, connection):
        for history in cycle(HISTORIES[self.first :] + HISTORIES[: self.first]):
            if self.done.is_set():
                break
            asked = json.dumps({"history": [{"item_id": i} for i in history], "k": 5})
            connection.request("POST", "/v1/recommend", asked, {"Content-Type": "application/json"})
            got = connection.getresponse()
            body = json.load(got)
            rows = [(row["item_id"], row["score"]) for row in body.get("ranking", [])]
            self.answers.append((tuple(history), got.status, got.headers["x-prefrec-run"], rows))
            time.sleep(0.01)


@contextmanager
def _served(link):
    """The port of a server of a link, and a function that returns what it has said so far."""
    command = [sys.executable, "-m", "prefrec", "serve", str(link), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = []
    reading = threading.Thread(target=lambda: said.extend(iter(process.stderr.readline, "")), daemon=True)
    reading.start()
    try:
        url = _waited(lambda: next((line.split(" at ")[1] for line in said if "Serving" in line), None), process)
        yield int(url.strip().rpartition(":")[2]), lambda: " ".join("".join(said).split())
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stderr.close()


def _waited(found, process=None):
    """What `found` returns once that is something."""
    end = time.monotonic() + 120
    while not (value := found()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.05)
    return value


@pytest.fixture
def shop(place, tmp_path):
    """The recipe of the first night, and the interactions of the second, by 16 users and a new one."""
    raw = place.recipe | {"align": []}
    raw["model"] |= {"templates": ["history"]}
    raw["sft"] |= {"rows": None, "epochs": 1, "eval_rows": 0}
    baselines = ["popularity", "window co-occurrence"]
    raw["evaluate"] = {"rows": 20, "ks": [1, 3], "zero_shot": False, "full_rows": 8, "baselines": baselines}
    last = pl.read_csv(place.shop["interactions"]).group_by("user_id", maintain_order=True).last()
    rows = []
    for user, item in last.select("user_id", "item_id").iter_rows():
        stride = 1 + int(user[1:]) % 3
        rows += [(user, f"i{(int(item[1:]) + stride * n) % ITEMS}", 20_000 + n) for n in range(1, 4)]
    rows += [("fresh", f"i{n}", 20_000 + n) for n in range(6)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "new.csv")
    return write_recipe(tmp_path, raw), tmp_path / "new.csv"


def test_three_nights_without_a_failed_or_mixed_answer(shop, tmp_path):
    recipe, new = shop
    runs = tmp_path / "runs"
    link, first, second, third = runs / "shop", *(runs / f"shop.{n}" for n in (1, 2, 3))

    # The first night: a run, and a server of the link to it.
    succeed("run", recipe, "--out", first)
    assert f"{link} leads to {first}" in succeed("switch", link, first)
    with _served(link) as (port, said):
        clients = [Client(port, n) for n in range(CLIENTS)]
        for client in clients:
            client.start()

        def answered_by(folder):
            _waited(lambda: all(c.answers and c.answers[-1][2] == folder.name for c in clients))

        answered_by(first)

        # The second night: an update takes the run's place while clients ask.
        out = succeed("update", link, "--interactions", new, "--out", second)
        assert "window co-occurrence is the default of shop.2, as of shop.1." in out
        assert "of the served answers on 41 newest test examples" in out
        assert f"To go back: prefrec switch {link} {first}" in succeed("switch", link, second)
        answered_by(second)

        # The third night: someone has dropped the best ranker from the recipe. The run is refused, but by force.
        changed = "evaluate.baselines=[popularity]"
        out = succeed("update", link, "--out", third, "--set", changed, "--replay", "2")
        assert "The default changes: window co-occurrence in shop.2, " in out
        message = " ".join(refused("switch", link, third).split())
        assert f"{link} still leads to shop.2, because shop.3 is worse" in message
        assert link.resolve() == second
        switched = json.loads(succeed("switch", link, third, "--force", "--json"))
        assert (switched["before"], switched["now"]) == (str(second), str(third))
        assert switched["succession"]["difference"]["high"] < 0
        answered_by(third)
        succeed("switch", link, second, "--force")
        answered_by(second)

        # A run that was copied only in part is neither linked nor served.
        broken = shutil.copytree(second, runs / "shop.4")
        weights = broken / "sft" / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert "sft is damaged" in refused("switch", link, broken)
        link.unlink()
        link.symlink_to(broken.name)
        _waited(lambda: "shop.4 is not served:" in said())
        assert f"still serving window co-occurrence, sft, popularity of {link} → shop.2" in said()
        asked = len(clients[0].answers)
        _waited(lambda: len(clients[0].answers) > asked + 10)
        answered_by(second)

        # The broken run counts as the newest one. The run that answers is kept although no link leads to it.
        expected = {folder.name: _expected(folder) for folder in (first, second, third)}
        assert expected["shop.1"] != expected["shop.2"] != expected["shop.3"]  # else a mixture could not be seen
        out = succeed("prune", link, "--keep", "0", "--dry-run")
        assert f"{second}: kept, a server uses it" in out
        succeed("switch", link, second)
        shutil.rmtree(broken)
        out = succeed("prune", link, "--keep", "1")
        assert sorted(out.splitlines()) == [
            f"{first}: deleted",
            f"{second}: kept, shop leads to it",
            f"{third}: kept, one of the newest",
        ]
        assert sorted(p.name for p in runs.iterdir()) == ["shop", "shop.2", "shop.3"]
        asked = len(clients[0].answers)
        _waited(lambda: len(clients[0].answers) > asked + 10)
        for client in clients:
            client.done.set()
        for client in clients:
            client.join(60)

    for client in clients:
        assert not client.is_alive()
        assert {status for _, status, _, _ in client.answers} == {200}
        in_turn = [name for name, _ in groupby(folder for _, _, folder, _ in client.answers)]
        assert in_turn == ["shop.1", "shop.2", "shop.3", "shop.2"]
        for history, _, folder, rows in client.answers:
            want = expected[folder][history]
            assert [item for item, _ in rows] == [item for item, _ in want]
            assert [score for _, score in rows] == pytest.approx([score for _, score in want], rel=1e-4)


def _expected(folder):
    """History → the answer of a run, as Python gives it."""
    rec = Recommender.from_run(folder)
    return {tuple(history): [(row.item_id, row.score) for row in rec.recommend(history, 5)] for history in HISTORIES}
