"""Prometheus metrics of this listener: what was asked and answered, what is stored and loaded. Every name starts with
``ipfs_accelerate_node_``; each application has its own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ipfs_accelerate_node.api.limiter import Giving

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
    def __init__(self, gauges: dict[str, Callable[[], float]], giving: Giving | None = None) -> None:
        """gauges: the current value of each name in `_GAUGES`, asked at each scrape. giving: asked as well."""
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
        if giving is not None:
            self._registry.register(_Given(giving))

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


class _Given(Collector):
    """What the node gave to others, of all its listeners together."""

    def __init__(self, giving: Giving) -> None:
        self._giving = giving

    def collect(self) -> Iterable[Metric]:
        given = CounterMetricFamily(
            _PREFIX + "given_bytes", "Content sent to those who fetch from us.", labels=["kind"]
        )
        for kind, size_bytes in sorted(self._giving.given_bytes.items()):
            given.add_metric([kind], size_bytes)
        yield given
        yield CounterMetricFamily(
            _PREFIX + "transfers_refused",
            "Asked for while as many as are allowed were under way.",
            self._giving.refused,
        )
        yield CounterMetricFamily(
            _PREFIX + "transfers_cut",
            "Ended for others who waited: hardly anything of them was taken.",
            self._giving.cut,
        )
        yield GaugeMetricFamily(_PREFIX + "transfers", "Replies with content under way.", self._giving.active)
