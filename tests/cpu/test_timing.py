"""Time of the processor."""

import time

from prefrec.cpu.timing import processor_seconds


def test_waiting_for_other_processes_does_not_count_as_slow() -> None:
    assert processor_seconds(lambda: time.sleep(0.02)) < 0.01
