"""`prefrec_lab.bench.load`: its servers, real clients, and what becomes of their answers."""

import importlib.util
import json
import subprocess
import sys

import pytest

from prefrec_lab.bench import load


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed")
def test_many_clients_are_answered_by_all_servers(adapted_run, tmp_path):
    out = tmp_path / "load.json"
    command = [
        sys.executable,
        "-m",
        "prefrec_lab.bench.load",
        adapted_run,
        "--clients",
        "3",
        "--seconds",
        "1",
        "--warm-up",
        "0",
    ]
    printed = subprocess.check_output([*command, "--rows", "8", "--out", out], text=True)
    result, names = json.loads(out.read_text()), ["batched", "one at a time"]
    loads = result["loads"]
    assert [(x["clients"], x["server"]) for x in loads] == [(3, name) for name in names]
    for x in loads:
        assert set(x["codes"]) == {"200"}
        assert x["answers"] == x["codes"]["200"] > 0
        assert x["throughput"] == pytest.approx(x["answers"] / x["seconds"])
        assert 0 < x["p50"] <= x["p99"]
        assert 0 < x["cpu"] < 60
        assert x["peak_bytes"] is None or x["peak_bytes"] > 50 << 20
    assert result["speedup"]["3"] == {x["server"]: loads[0]["throughput"] / x["throughput"] for x in loads}
    assert all(name in printed for name in names)
    assert printed.count(" × 200") == 2


@pytest.mark.parametrize(
    ("values", "share", "quantile"), [([], 0.5, None), ([1, 2], 0.5, 1), (list(range(1, 201)), 0.99, 198)]
)
def test_quantiles(values, share, quantile):
    assert load._quantile(values, share) == quantile
