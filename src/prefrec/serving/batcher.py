"""One worker thread that answers the questions of many clients in few passes: bounded queue, deadlines.

There is no waiting for company: the worker takes what has come while it was busy. An idle server answers at
once, a busy one answers many at a time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from prefrec.errors import PrefrecError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

LONGEST_RETRY_S = 60
"""Clients are never told to stay away for longer."""

_MEMORY = 0.2
"""Weight of the newest pass in the mean time a job takes."""


class QueueFullError(PrefrecError):
    """More jobs wait than may; `retry_after` is the number of seconds after which there should be room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting, which is as many as may; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlineError(PrefrecError):
    """A job's time ran out before its answer was there."""


class StoppedError(PrefrecError):
    """The batcher takes no jobs any more."""


@dataclass(frozen=True)
class Pass:
    """What the worker did at one go: jobs answered, and seconds they waited in the queue and were worked on."""

    jobs: int
    waited: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Load:
    """What a job asks of a pass: jobs of one `kind` may share it, while their sizes fit into its room."""

    kind: Hashable
    size: float


@dataclass(frozen=True)
class _Waiting(Generic[Job, Answer]):
    job: Job
    load: Load
    since: float
    deadline: float
    future: Future[Answer]


class Batcher(Generic[Job, Answer]):
    """Collects jobs of several threads and hands them to `work`, some at a time, in a thread of its own.

    Args:
        work: answers [n] of jobs [n]. Called by the worker thread only. Where it raises for several jobs, each
            is tried alone, so that no job fails for another's fault.
        load: of a job; asked by the thread that submits it.
        room: sum of the sizes of the jobs that may share a pass; one alone always may.
        max_jobs: jobs that may share a pass; None: any number that fits.
        max_queue: jobs that may wait.
        on_pass: told of every pass.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Answer]],
        *,
        load: Callable[[Job], Load],
        room: float,
        max_jobs: int | None = None,
        max_queue: int = 256,
        on_pass: Callable[[Pass], None] = lambda done: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._load, self._on_pass, self._clock = work, load, on_pass, clock
        self.room, self.max_jobs = room, max_jobs
        self.max_queue = max_queue
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
        """Queue a job that is of no use after `timeout` seconds.

        Raises:
            QueueFullError: no room.
            StoppedError: `close` has been called.
        """
        load = self._load(job)
        with self._changed:
            self.check_room()
            future: Future[Answer] = Future()
            now = self._clock()
            self._queue.append(_Waiting(job, load, now, now + timeout, future))
            self._changed.notify()
        return future

    def check_room(self, coming: int = 0) -> None:
        """Make sure that one more job may come, beside those that are on their way.

        Args:
            coming: jobs that will be submitted without fail.

        Raises:
            QueueFullError: no room.
            StoppedError: `close` has been called.
        """
        with self._changed:
            if self._stopped:
                raise StoppedError("the server is stopping")
            if len(self._queue) + coming >= self.max_queue:
                now = self._clock()
                self._queue = deque(w for w in self._queue if not self._is_lost(w, now))
            waiting = len(self._queue) + coming
            if waiting >= self.max_queue:
                raise QueueFullError(waiting, self._retry_after(waiting))

    def close(self, timeout: float | None = None) -> None:
        """Take no new jobs, answer those that wait, and end the worker; does nothing the second time.

        Args:
            timeout: seconds after which jobs that still wait are given up.
        """
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
            each = seconds / len(batch)
            self._job_seconds += _MEMORY * (each - self._job_seconds) if self._job_seconds else each
            self._on_pass(Pass(len(batch), tuple(start - w.since for w in batch), seconds))

    def _next_batch(self) -> list[_Waiting[Job, Answer]]:
        """The oldest job and those behind it that fit beside it; empty when it is time to end."""
        with self._changed:
            while True:
                while not self._queue and not self._stopped:
                    self._changed.wait()
                if not self._queue:
                    return []
                batch: list[_Waiting[Job, Answer]] = []
                kept: deque[_Waiting[Job, Answer]] = deque()
                now, taken = self._clock(), 0.0
                for waiting in self._queue:
                    if self._is_lost(waiting, now):
                        continue
                    if batch and not self._may_join(batch, taken + waiting.load.size, waiting.load.kind):
                        kept.append(waiting)
                    elif waiting.future.set_running_or_notify_cancel():
                        batch.append(waiting)
                        taken += waiting.load.size
                self._queue = kept
                if batch:
                    return batch

    def _may_join(self, batch: Sequence[_Waiting[Job, Answer]], taken: float, kind: Hashable) -> bool:
        """Whether one more job of this kind may go with `batch`, and take it to this size."""
        full = self.max_jobs is not None and len(batch) >= self.max_jobs
        return not full and kind == batch[0].load.kind and taken <= self.room

    def _is_lost(self, waiting: _Waiting[Job, Answer], now: float) -> bool:
        """True for a job that nobody waits for any more; its future is settled."""
        if waiting.deadline <= now and waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(DeadlineError("the request waited longer than its deadline"))
        return waiting.future.done()

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

    def _retry_after(self, waiting: int) -> int:
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._job_seconds * waiting)))
