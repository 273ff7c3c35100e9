"""Count calls of oneDNN, and run its attention on models whose rows are too short for it."""

from types import ModuleType

import pytest

from prefrec.cpu import attention as onednn_attention


def calls_of(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[int]:
    """A list that grows by each call of a module's function."""
    calls: list[int] = []
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: (calls.append(1), function(*args))[1])
    return calls


def always_by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let it stand in however few the scores are, eight queries at a time; a list that grows by each product."""
    monkeypatch.setenv("PREFREC_LINEAR", "onednn")
    monkeypatch.setattr(onednn_attention, "LEAST", 0)
    monkeypatch.setattr(onednn_attention, "QUERIES", 8)
    return calls_of(monkeypatch, onednn_attention, "multiply")
