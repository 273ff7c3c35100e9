"""Fixtures for the tests of whole runs; those of stages use them, too."""

from small_stages import entries as entries
from small_stages import stop_after as stop_after
