"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prefrec.serving.batcher import Pass

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "prefrec_requests", "HTTP requests answered.", ("path", "status"), registry=self.registry
        )
        self._latency = Histogram(
            "prefrec_request_seconds",
            "From a request's first byte to the answer's last.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._jobs = Histogram(
            "prefrec_pass_requests",
            "Requests that shared a pass of the worker.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self._pass = Histogram(
            "prefrec_pass_seconds", "Time of a pass of the worker.", buckets=_SECONDS, registry=self.registry
        )
        self._waited = Histogram(
            "prefrec_queue_seconds", "Time a request waited for the worker.", buckets=_SECONDS, registry=self.registry
        )
        self._waiting = Gauge("prefrec_queue_requests", "Requests that wait for the worker.", registry=self.registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Show what `waiting` says as the queue's length."""
        self._waiting.set_function(waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is the route's, not the client's, so that the series stay few."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def on_pass(self, done: Pass) -> None:
        """Count a pass of the worker."""
        self._jobs.observe(done.jobs)
        self._pass.observe(done.seconds)
        for seconds in done.waited:
            self._waited.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
