"""Fixtures for the tests of stages; those of whole runs use them, too."""

from small_stages import entries as entries
from small_stages import stop_after as stop_after
