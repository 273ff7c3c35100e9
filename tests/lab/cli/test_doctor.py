"""`prefrec doctor`: a table for people, JSON for machines."""

import json

import torch

from command import succeed


def test_people_see_what_is_there_and_what_is_slow():
    out = succeed("doctor")
    assert f"torch {torch.__version__}" in out
    assert f"{torch.get_num_threads()} of " in out
    assert "GFLOP/s (cpu)" in out
    if not torch.cuda.is_available():
        assert "• torch sees no GPU" in out


def test_machines_get_json():
    found = json.loads(succeed("doctor", "--json"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["rates"]["cpu"]["float32"] > 0
    assert all(f["what"] and f["remedy"] for f in found["findings"])


def test_settings_are_shown(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "[bold]PASSIVE")
    assert "OMP_WAIT_POLICY=[bold]PASSIVE" in succeed("doctor")
