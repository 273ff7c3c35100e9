"""Time of the processor, which other processes hardly change."""

from collections.abc import Callable
from time import process_time
from timeit import repeat


def processor_seconds(call: Callable[[], object]) -> float:
    """Return the minimum processor time of nine calls; time in which this process waits for others does not count."""
    return min(repeat(call, timer=process_time, repeat=9, number=1))
