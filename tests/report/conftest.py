"""Plots for the tests that look at them; the others do without, because plots take a second."""

from importlib.util import find_spec

import pytest


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr("prefrec.report.svg.find_spec", find_spec)
