"""The clients of `prefrec_lab.bench.load`, as a locustfile: each queries one entry point repeatedly, without a pause.

Environment: LOAD_ASK (rank or recommend), LOAD_QUESTIONS (JSON file with bodies to ask), LOAD_RESULT (JSON file to
write), LOAD_WARM_UP (seconds from the start that do not count).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task

QUESTIONS = json.loads(Path(os.environ["LOAD_QUESTIONS"]).read_text(encoding="utf-8"))

_turn = itertools.count()
_codes: Counter[str] = Counter()
_seconds: list[float] = []
_answered = [0]
_span: list[float] = []
_start = time.monotonic() + float(os.environ["LOAD_WARM_UP"])


class Client(FastHttpUser):
    """Asks the questions in turn, shared with the other clients."""

    wait_time = constant(0)
    network_timeout = connection_timeout = 600.0

    @task
    def ask(self) -> None:
        """One question; what comes back is noted by status code (0: no answer at all)."""
        body = QUESTIONS[next(_turn) % len(QUESTIONS)]
        began = time.monotonic()
        with self.client.post(f"/v1/{os.environ['LOAD_ASK']}", json=body, catch_response=True) as answer:
            ended = time.monotonic()
            answer.success()  # counted here, by code
            _answered[0] += answer.status_code == 200
            if began >= _start:
                _codes[str(answer.status_code)] += 1
                _span[:] = [_span[0] if _span else began, ended]
                if answer.status_code == 200:
                    _seconds.append(ended - began)


def _write(environment: Any, **_: Any) -> None:
    found = {
        "answered": _answered[0],
        "seconds": _seconds,
        "codes": _codes,
        "span": _span[1] - _span[0] if _span else 0.0,
    }
    Path(os.environ["LOAD_RESULT"]).write_text(json.dumps(found), encoding="utf-8")


events.quitting.add_listener(_write)
