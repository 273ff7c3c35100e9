"""What the tests of stages share with those of whole runs."""

from small_stages import entries as entries
from small_stages import stop_after as stop_after
