"""oneDNN's attention on models whose rows are too short for it."""

from __future__ import annotations

import pytest

from prefrec import onednn_attention


def always_by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let it stand in however few the scores are, eight queries at a time; a list that grows by each product."""
    calls: list[int] = []
    product = onednn_attention.multiply
    monkeypatch.setenv("PREFREC_LINEAR", "onednn")
    monkeypatch.setattr(onednn_attention, "LEAST", 0)
    monkeypatch.setattr(onednn_attention, "QUERIES", 8)
    monkeypatch.setattr(onednn_attention, "multiply", lambda *args: (calls.append(1), product(*args))[1])
    return calls
