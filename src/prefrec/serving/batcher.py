"""One worker thread that answers the questions of many clients in few passes: bounded queue, deadlines.

The worker never waits for more questions: it takes those that came while it was busy. What a pass has no room for of
a long question goes to the end of the queue, so that others need not wait for all of it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from prefrec.errors import PrefrecError

Part = TypeVar("Part")
Answer = TypeVar("Answer")

QUEUED_PASSES = 64
"""Full passes that may wait: about as many as a small model finishes on a CPU before the default deadline."""
RETRY_AFTER = 5
"""Seconds after which a refused job may have a place, here or at another server."""


class QueueFullError(PrefrecError):
    """The queue is full."""


class DeadlineError(PrefrecError):
    """A job's time ran out before its answer was there."""


class StoppedError(PrefrecError):
    """The batcher takes no more jobs."""


class Pass(NamedTuple):
    """A finished pass: number of jobs, seconds that each new one waited in the queue, and seconds of the pass."""

    jobs: int
    waited: tuple[float, ...]
    seconds: float


@dataclass(eq=False)
class _Job(Generic[Part, Answer]):
    kind: Hashable
    left: deque[tuple[Part, int]]
    """Parts that no pass has taken, and their tokens."""
    since: float
    deadline: float
    answers: list[Answer] = field(default_factory=list)
    future: Future[list[Answer]] = field(default_factory=Future)

    def claim(self) -> bool:
        """Return True if the outcome may be set now: the client waits, and has none."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def fail(self, error: Exception) -> None:
        if self.claim():
            self.future.set_exception(error)

    def is_lost(self, now: float) -> bool:
        """Fail the job if it is past its deadline; return True if nobody waits for it any more."""
        if self.deadline <= now:
            self.fail(DeadlineError("the request waited longer than its deadline"))
        return self.future.done()


_Turn = tuple[_Job[Part, Answer], list[tuple[Part, int]]]
"""A job, and those of its parts that a pass answers, with their tokens."""


class Batcher(Generic[Part, Answer]):
    """Collects jobs of several threads and hands their parts to `work`, some at a time, in a thread of its own.

    Args:
        work: answers [n] of parts [n] of a kind. If it raises for several jobs, each is tried alone.
        size: tokens of a part.
        room: tokens of the parts that may share a pass; a single part may be larger.
        max_batch: jobs that may share a pass; None: any number that fits.
        max_queue: jobs that may wait.
    """

    def __init__(
        self,
        work: Callable[[Any, Sequence[Part]], Sequence[Answer]],
        *,
        size: Callable[[Part], int],
        room: int,
        max_batch: int | None = None,
        max_queue: int = 256,
        on_pass: Callable[[Pass], None] = lambda done: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._size, self._on_pass, self._clock = work, size, on_pass, clock
        self.room, self.max_batch, self.max_queue = room, max_batch or math.inf, max_queue
        self._queue: deque[_Job[Part, Answer]] = deque()
        self._in_work: list[_Job[Part, Answer]] = []
        self._changed = threading.Condition()
        self._stopped = False
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

    def submit(self, kind: Hashable, parts: Sequence[Part], timeout: float) -> Future[list[Answer]]:
        """Queue a job of some parts, whose answers are useless after `timeout` seconds; raises as `check_room`.

        Cancelling the future gives up the parts that no pass has taken.
        """
        left = deque((part, self._size(part)) for part in parts)
        with self._changed:
            self.check_room(tokens=sum(size for _, size in left))
            now = self._clock()
            job: _Job[Part, Answer] = _Job(kind, left, now, now + timeout)
            self._queue.append(job)
            self._changed.notify()
        return job.future

    def check_room(self, coming: int = 0, tokens: int = 0) -> None:
        """Raise QueueFullError or StoppedError if a job of so many tokens may not come besides `coming` others."""
        with self._changed:
            if self._stopped:
                raise StoppedError("the server is stopping")
            self._drop_lost()
            jobs = len(self._queue) + coming
            waiting = sum(size for job in (*self._queue, *self._in_work) for _, size in job.left)
            # A job that is larger than all that may wait can come to an empty queue.
            if jobs >= self.max_queue or (waiting and waiting + tokens > QUEUED_PASSES * self.room):
                raise QueueFullError(
                    f"{jobs} requests with {waiting} tokens are waiting, the most that may wait; "
                    f"try again in {RETRY_AFTER} s, or ask for less"
                )

    def check_wanted(self) -> None:
        """Raise DeadlineError if nobody waits any more for any job of the present pass."""
        if self._in_work and all(job.is_lost(self._clock()) for job in self._in_work):
            raise DeadlineError("nobody waits for the answer any more")

    def close(self, timeout: float | None = None) -> None:
        """Take no new jobs, answer those that wait, and end the worker; jobs are given up after `timeout` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._worker.join(timeout)
        with self._changed:
            left, self._queue = list(self._queue), deque()
        for job in left:
            job.fail(StoppedError("the server stopped before it could answer"))

    def _run(self) -> None:
        while turns := self._next_pass():
            start = self._clock()
            waited = tuple(start - job.since for job, _ in turns if not job.answers)
            self._answer(turns)
            seconds = self._clock() - start
            with self._changed:
                self._queue.extend(job for job in self._in_work if job.left and not job.future.done())
                self._in_work = []
            self._on_pass(Pass(len(turns), waited, seconds))

    def _next_pass(self) -> list[_Turn[Part, Answer]]:
        """Return the oldest job and those behind it that fit beside it; an empty list when the worker is to end."""
        turns: list[_Turn[Part, Answer]] = []
        with self._changed:
            # Again, if nobody waits any more for any of the jobs that came.
            while not turns:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return []
                self._drop_lost()
                room, kept = self.room, deque[_Job[Part, Answer]]()
                for job in self._queue:
                    parts: list[tuple[Part, int]] = []
                    fits = not turns or (job.kind == turns[0][0].kind and len(turns) < self.max_batch)
                    # The very first part goes whatever its size, since it would never fit otherwise.
                    while fits and job.left and (job.left[0][1] <= room or not (turns or parts)):
                        parts.append(job.left.popleft())
                        room -= parts[-1][1]
                    if parts:
                        turns.append((job, parts))
                    else:
                        kept.append(job)
                self._queue, self._in_work = kept, [job for job, _ in turns]
        return turns

    def _answer(self, turns: Sequence[_Turn[Part, Answer]]) -> None:
        first, _ = turns[0]
        try:
            answers = iter(self._work(first.kind, [part for _, parts in turns for part, _ in parts]))
        except Exception as e:  # noqa: BLE001  # whatever it is, the clients must hear of it and the worker live on
            if len(turns) == 1:
                first.fail(e)
            else:
                for turn in turns:
                    self._answer([turn])
            return
        for job, parts in turns:
            job.answers += [next(answers) for _ in parts]
            if not job.left and job.claim():
                job.future.set_result(job.answers)

    def _drop_lost(self) -> None:
        now = self._clock()
        self._queue = deque(job for job in self._queue if not job.is_lost(now))
