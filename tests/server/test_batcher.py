"""The worker thread: what shares a pass, what is refused, what runs out of time, and how it ends."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec_server.batcher import QUEUED_PASSES, Batcher, DeadlineError, QueueFullError, StoppedError


class Worker:
    """Squares numbers; holds every pass until it is let go, and notes what shared one."""

    def __init__(self, held: bool = True) -> None:
        self.passes: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0 if held else 1_000_000)

    def __call__(self, kind, jobs):
        assert {j % 2 for j in jobs} == {kind}
        self.passes.append(list(jobs))
        self.begun.release()
        assert self.go.acquire(timeout=20)
        if any(j < 0 for j in jobs):
            raise ValueError(f"{jobs} holds a negative number")
        return [j * j for j in jobs]


ALIKE: dict = {"size": lambda job: 3, "room": 12}
"""At most four share a pass, and odd and even numbers are apart."""


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def make(worker):
    """Makes a batcher of the worker, which ends with the test."""
    made = []
    yield lambda **settings: made.append(Batcher(worker, **settings)) or made[0]
    worker.go.release(1000)
    made[0].close()


@pytest.fixture
def batcher(make, now):
    return make(**ALIKE, max_queue=6, clock=lambda: now[0])


def _submit(batcher, *numbers, timeout=100) -> Future:
    """One job; its numbers are all odd, or all even."""
    return batcher.submit(numbers[0] % 2, numbers, timeout)


def _busy(batcher, worker) -> Future:
    """A job in the worker's hands, so that what comes next has to wait."""
    future = _submit(batcher, 1)
    assert worker.begun.acquire(timeout=20)
    return future


def _finish(worker, futures):
    worker.go.release(1000)
    return [n for f in futures for n in f.result(timeout=20)]


@pytest.mark.parametrize(
    ("max_batch", "passes"), [(1, [[1], [3], [5], [7]]), (2, [[1], [3, 5], [7]]), (None, [[1], [3, 5, 7]])]
)
def test_so_many_share_a_pass_and_no_more(make, worker, max_batch, passes):
    batcher = make(size=lambda job: 1, room=9, max_batch=max_batch)
    first = _busy(batcher, worker)
    _finish(worker, [first, *[_submit(batcher, n) for n in (3, 5, 7)]])
    assert worker.passes == passes


def test_what_is_too_large_goes_alone_and_smaller_ones_do_not_wait_for_it(make, worker):
    batcher = make(size=lambda job: job, room=10)
    first = _busy(batcher, worker)
    _finish(worker, [first, *[_submit(batcher, n) for n in (7, 99, 3, 5, 3)]])
    assert worker.passes == [[1], [7, 3], [99], [5, 3]]


def test_a_long_job_takes_turns_with_those_that_came_after_it(batcher, worker):
    first, long = _busy(batcher, worker), _submit(batcher, *range(2, 22, 2))
    short, odd = _submit(batcher, 100), _submit(batcher, 3)
    assert _finish(worker, [first, long, short, odd]) == [1, *(n * n for n in range(2, 22, 2)), 10_000, 9]
    assert worker.passes == [[1], [2, 4, 6, 8], [100, 10, 12, 14], [3], [16, 18, 20]]


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_the_rest_of_a_long_job_that_nobody_waits_for_is_not_worked_on(batcher, worker, now, how):
    long = _submit(batcher, *range(1, 13, 2), timeout=5)
    assert worker.begun.acquire(timeout=20)
    batcher.check_wanted()
    if how == "cancelled":
        assert long.cancel()
    else:
        now[0] = 10
    with pytest.raises(DeadlineError):
        batcher.check_wanted()
    assert _finish(worker, [_submit(batcher, 2)]) == [4]
    assert worker.passes == [[1, 3, 5, 7], [2]]
    assert long.done()


def test_a_queue_is_full_of_tokens_too(make, worker):
    batcher = make(size=lambda job: job, room=10)
    first = _busy(batcher, worker)
    huge = _submit(batcher, 10 * QUEUED_PASSES + 1)  # alone in the queue: it would never fit otherwise
    with pytest.raises(QueueFullError, match=r"1 requests with 641 tokens.*try again in"):
        _submit(batcher, 3)
    assert _finish(worker, [first, huge]) == [1, 641**2]


def test_lost_jobs_make_room(batcher, worker, now):
    first, lost = _busy(batcher, worker), [_submit(batcher, 2, timeout=5) for _ in range(5)]
    assert _submit(batcher, 2).cancel()
    now[0] = 10
    last = _submit(batcher, 8)
    assert all(f.done() for f in lost)
    assert _finish(worker, [first, last]) == [1, 64]
    assert worker.passes == [[1], [8]]


def test_a_job_fails_for_its_own_fault_only(batcher, worker):
    first = _busy(batcher, worker)
    good, bad, also_good = (_submit(batcher, n) for n in (3, -1, 5))
    assert _finish(worker, [first, good, also_good]) == [1, 9, 25]
    with pytest.raises(ValueError, match=r"\[-1\] holds a negative number"):
        bad.result(timeout=20)
    assert _finish(worker, [_submit(batcher, 7)]) == [49]


def test_closing_answers_what_waits(batcher, worker):
    first, waiting = _busy(batcher, worker), _submit(batcher, 2)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert _finish(worker, [first, waiting]) == [1, 4]
    closing.join(timeout=20)
    assert not batcher.alive
    with pytest.raises(StoppedError):
        _submit(batcher, 1)
    batcher.close()


def test_closing_in_a_hurry_gives_up_what_waits(batcher, worker):
    first, waiting = _busy(batcher, worker), _submit(batcher, 2)
    batcher.close(timeout=0.01)
    with pytest.raises(StoppedError, match="before it could answer"):
        waiting.result(timeout=20)
    assert _finish(worker, [first]) == [1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 50), min_size=1, max_size=60), st.integers(1, 8))
def test_every_client_gets_its_own_answer(numbers, threads):
    """As many clients as there are threads; a slow twin squares one number after the other."""
    worker = Worker(held=False)
    batcher = Batcher(worker, **ALIKE, max_queue=100)

    def ask(n):
        try:
            return _submit(batcher, n).result(timeout=20)[0]
        except ValueError:
            return "refused"

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(ask, numbers))
    batcher.close()
    assert answers == [n * n if n >= 0 else "refused" for n in numbers]
    assert all(len(jobs) <= 4 and len({j % 2 for j in jobs}) == 1 for jobs in worker.passes)
