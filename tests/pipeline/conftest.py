"""What the tests of whole runs share with those of stages."""

from small_stages import entries as entries
from small_stages import stop_after as stop_after
