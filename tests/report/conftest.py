"""Tests of reports look at the plots, too."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def drawn(plots):
    """Draw them."""
