"""One worker thread that answers the questions of many clients in few passes: bounded queue, deadlines.

The worker never waits for more jobs: it takes those that came while it was busy. An idle server answers at once, a
busy one answers many at a time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

from prefrec.errors import PrefrecError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

LONGEST_RETRY_S = 60
"""Longest time that clients are told to stay away."""

_MEMORY = 0.2
"""Weight of the newest pass in the mean time per job."""


class QueueFullError(PrefrecError):
    """The queue is full; `retry_after` is the number of seconds after which there should be room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting, which is as many as may; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineError(PrefrecError):
    """A job's time ran out before its answer was there."""


class StoppedError(PrefrecError):
    """The batcher takes no more jobs; another server may take them after `retry_after` seconds."""

    retry_after = 5


class Pass(NamedTuple):
    """A finished pass: number of jobs, seconds that each waited in the queue, and seconds of the pass."""

    jobs: int
    waited: tuple[float, ...]
    seconds: float


class Load(NamedTuple):
    """A job's claim on a pass: jobs of one `kind` may share it, while their sizes fit into its room."""

    kind: Hashable
    size: float


class _Waiting(NamedTuple, Generic[Job, Answer]):
    job: Job
    load: Load
    since: float
    deadline: float
    future: Future[Answer]


class Batcher(Generic[Job, Answer]):
    """Collects jobs of several threads and hands them to `work`, some at a time, in a thread of its own.

    Args:
        work: answers [n] of jobs [n]. If it raises for several jobs, each is tried alone, so that none fails because
            of another.
        load: of a job; called by the thread that submits it.
        room: sum of the sizes of the jobs that may share a pass; a single job may be larger.
        max_batch: jobs that may share a pass; None: any number that fits.
        max_queue: jobs that may wait.
        on_pass: called after every pass.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Answer]],
        *,
        load: Callable[[Job], Load],
        room: float,
        max_batch: int | None = None,
        max_queue: int = 256,
        on_pass: Callable[[Pass], None] = lambda done: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._load, self._on_pass, self._clock = work, load, on_pass, clock
        self.room, self.max_batch, self.max_queue = room, max_batch or math.inf, max_queue
        self._queue: deque[_Waiting[Job, Answer]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._job_seconds = 0.0
        self._worker = threading.Thread(target=self._run, name="prefrec-batcher", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """True while jobs are taken and worked on."""
        return not self._stopped and self._worker.is_alive()

    def submit(self, job: Job, timeout: float) -> Future[Answer]:
        """Queue a job whose answer is useless after `timeout` seconds; raises as `check_room`."""
        load = self._load(job)
        with self._changed:
            self.check_room()
            now = self._clock()
            waiting: _Waiting[Job, Answer] = _Waiting(job, load, now, now + timeout, Future())
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    def check_room(self, coming: int = 0) -> None:
        """Raise QueueFullError or StoppedError if no job may come besides `coming` ones that are on their way."""
        with self._changed:
            if self._stopped:
                raise StoppedError("the server is stopping")
            if len(self._queue) + coming >= self.max_queue:
                now = self._clock()
                self._queue = deque(w for w in self._queue if not _is_lost(w, now))
            waiting = len(self._queue) + coming
            if waiting >= self.max_queue:
                seconds = math.ceil(self._job_seconds * waiting)
                raise QueueFullError(waiting, min(LONGEST_RETRY_S, max(1, seconds)))

    def close(self, timeout: float | None = None) -> None:
        """Take no new jobs, answer those that wait, and end the worker; jobs are given up after `timeout` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._worker.join(timeout)
        with self._changed:
            left, self._queue = list(self._queue), deque()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(StoppedError("the server stopped before it could answer"))

    def _run(self) -> None:
        while batch := self._next_batch():
            start = self._clock()
            self._answer(batch)
            seconds = self._clock() - start
            # A moving mean, for the time after which a refused client is to come again.
            each = seconds / len(batch)
            self._job_seconds += _MEMORY * (each - self._job_seconds) if self._job_seconds else each
            self._on_pass(Pass(len(batch), tuple(start - w.since for w in batch), seconds))

    def _next_batch(self) -> list[_Waiting[Job, Answer]]:
        """Return the oldest job and those behind it that fit beside it; an empty list when the worker is to end."""
        batch: list[_Waiting[Job, Answer]] = []
        with self._changed:
            # Again, if nobody waits any more for any of the jobs that came.
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return []
                kept: deque[_Waiting[Job, Answer]] = deque()
                now, size = self._clock(), 0.0
                for waiting in self._queue:
                    kind, more = waiting.load
                    if _is_lost(waiting, now):
                        continue
                    # The first goes whatever its size, since it would never fit otherwise.
                    full = len(batch) >= self.max_batch or size + more > self.room
                    if batch and (full or kind != batch[0].load.kind):
                        kept.append(waiting)
                    # False if it was cancelled, as its client has gone.
                    elif waiting.future.set_running_or_notify_cancel():
                        batch.append(waiting)
                        size += more
                self._queue = kept
        return batch

    def _answer(self, batch: Sequence[_Waiting[Job, Answer]]) -> None:
        try:
            answers = self._work([w.job for w in batch])
        except Exception as e:  # noqa: BLE001  # whatever it is, the clients must hear of it and the worker live on
            if len(batch) == 1:
                batch[0].future.set_exception(e)
                return
            for waiting in batch:
                self._answer([waiting])
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.future.set_result(answer)


def _is_lost(waiting: _Waiting[Job, Answer], now: float) -> bool:
    """Settle the future of a job past its deadline; return True for a job that nobody waits for any more."""
    if waiting.deadline <= now and waiting.future.set_running_or_notify_cancel():
        waiting.future.set_exception(DeadlineError("the request waited longer than its deadline"))
    return waiting.future.done()
