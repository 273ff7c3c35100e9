"""A limit of time for what may hang, in the main thread."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hung(BaseException):
    """It took too long. No handler of errors takes it for a refusal."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hung(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
