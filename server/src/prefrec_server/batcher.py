"""One worker thread that answers the requests of many clients in few passes, with a bounded queue and deadlines.

The worker never waits for more jobs: a pass takes those that arrived during the last one. Parts of a long job that do
not fit into a pass go to the end of the queue, so that other jobs need not wait for all of it.
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
"""Most full passes in the queue: about as many as a small model finishes on a CPU within the default deadline."""
RETRY_AFTER = 5
"""Seconds after which a client may retry a refused job, here or at another server."""


class QueueFullError(PrefrecError):
    """The queue is full."""


class DeadlineError(PrefrecError):
    """A job was not answered before its deadline."""


class StoppedError(PrefrecError):
    """The batcher accepts no more jobs."""


class Pass(NamedTuple):
    """A finished pass: number of jobs, seconds that each new job waited, and seconds of the pass."""

    jobs: int
    waited: tuple[float, ...]
    seconds: float


@dataclass(eq=False)
class _Job(Generic[Part, Answer]):
    kind: Hashable
    left: deque[tuple[Part, int]]
    """Parts that are not in a pass yet, and their tokens."""
    since: float
    deadline: float
    answers: list[Answer] = field(default_factory=list)
    future: Future[list[Answer]] = field(default_factory=Future)

    def claim(self) -> bool:
        """Return True if the outcome may be set: the client still waits and has none."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()

    def fail(self, error: Exception) -> None:
        if self.claim():
            self.future.set_exception(error)

    def is_lost(self, now: float) -> bool:
        """Fail the job if it is past its deadline; return True if no client waits for it any more."""
        if self.deadline <= now:
            self.fail(DeadlineError("the request waited longer than its deadline"))
        return self.future.done()


_Turn = tuple[_Job[Part, Answer], list[tuple[Part, int]]]
"""A job, and its parts in a pass with their tokens."""


class Batcher(Generic[Part, Answer]):
    """Collects jobs from several threads and passes their parts to `work` in its own thread.

    Args:
        work: (kind, parts [n]) → answers [n]. If it raises for several jobs, each is tried alone.
        size: part → its tokens.
        room: most tokens of parts that share a pass; a single part may be larger.
        max_batch: most jobs that share a pass. Default: no limit.
        max_queue: most jobs in the queue.
        on_pass: called after each pass.
        clock: returns the time in seconds.
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
        """Number of jobs in the queue."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """True while jobs are accepted and processed."""
        return not self._stopped and self._worker.is_alive()

    def submit(self, kind: Hashable, parts: Sequence[Part], timeout: float) -> Future[list[Answer]]:
        """Queue a job of some parts with a deadline in `timeout` seconds; raise errors of `check_room`.

        If the future is cancelled, parts that are not in a pass yet are dropped.
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
        """Raise QueueFullError or StoppedError if there is no room for `coming` jobs and one of `tokens`."""
        with self._changed:
            if self._stopped:
                raise StoppedError("the server is stopping")
            self._drop_lost()
            jobs = len(self._queue) + coming
            waiting = sum(size for job in (*self._queue, *self._in_work) for _, size in job.left)
            # An empty queue accepts a job of any size.
            if jobs >= self.max_queue or (waiting and waiting + tokens > QUEUED_PASSES * self.room):
                raise QueueFullError(
                    f"the queue is full ({jobs} requests with {waiting} tokens); try again in {RETRY_AFTER} s, or "
                    "send a smaller request"
                )

    def check_wanted(self) -> None:
        """Raise DeadlineError if no client waits any more for any job of the current pass."""
        if self._in_work and all(job.is_lost(self._clock()) for job in self._in_work):
            raise DeadlineError("no client waits for the answer any more")

    def close(self, timeout: float | None = None) -> None:
        """Accept no new jobs, answer those in the queue, and end the worker; drop jobs after `timeout` seconds."""
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
                unfinished = [job for job in self._in_work if job.left and not job.future.done()]
                self._queue.extend(unfinished)
                self._in_work = []
            self._on_pass(Pass(len(turns), waited, seconds))

    def _next_pass(self) -> list[_Turn[Part, Answer]]:
        """Return the oldest job and later ones that fit into the same pass; an empty list to end the worker."""
        turns: list[_Turn[Part, Answer]] = []
        with self._changed:
            # Repeat if no client waits any more for any of the jobs.
            while not turns:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if not self._queue:
                    return []
                self._drop_lost()
                room, kept = self.room, deque[_Job[Part, Answer]]()
                for job in self._queue:
                    parts: list[tuple[Part, int]] = []
                    fits = not turns or (job.kind == turns[0][0].kind and len(turns) < self.max_batch)
                    # The first part is accepted whatever its size, because it would never fit otherwise.
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
        except Exception as e:  # noqa: BLE001  # clients must get any error, and the worker must survive it
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
