"""Prometheus metrics of this listener: what was asked and answered, what is stored and loaded. Every name starts with
``ipfs_accelerate_node_``; each application has its own registry."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_PREFIX = "ipfs_accelerate_node_"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_GAUGES = {
    "in_flight": "Requests under way.",
    "ready": "1 while new work is admitted.",
    "store_bytes": "Bytes that stored files take on disk.",
    "models_stored": "Models in the store.",
    "models_loaded": "Models with a worker process.",
}


class Metrics:
    def __init__(self, gauges: dict[str, Callable[[], float]]) -> None:
        """gauges: the current value of each name in `_GAUGES`, asked at each scrape."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            _PREFIX + "requests",
            "Answered requests; status 499: the client left first.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            _PREFIX + "request_seconds",
            "From the request's headers to its last byte handed to the system.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._mock = Counter(_PREFIX + "mock_responses", "Replies marked MOCK.", registry=self._registry)
        self._tokens = Counter(
            _PREFIX + "prompt_tokens", "Tokens of inference requests.", ["implementation"], registry=self._registry
        )
        for name, text in _GAUGES.items():
            Gauge(_PREFIX + name, text, registry=self._registry).set_function(gauges[name])

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """route: the pattern, never the path, so that labels stay few."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def inferred(self, implementation: str, prompt_tokens: int) -> None:
        self._tokens.labels(implementation).inc(prompt_tokens)
        if implementation == "MOCK":
            self._mock.inc()

    def page(self) -> bytes:
        return generate_latest(self._registry)
