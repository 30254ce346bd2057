"""Prometheus metrics of the node: what was asked and answered, and where the time went. Every name starts with
``ipfs_accelerate_node_``; each application has its own registry. What parts of the node are at is collected when the
page is made (`metrics_models`, `metrics_node`).

Labels stay few whatever is sent: a route is its pattern, and a model counts by its own name only if it answered or is
loaded, the first ``MAX_MODELS`` of them; all others are ``other``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ipfs_accelerate_node.api.metrics_aliases import Aliases
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import LoadedModel
from ipfs_accelerate_node.inference.model import Timing

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "ipfs_accelerate_node_"
MAX_MODELS = 64
OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_SHORT = (0.0001, 0.00025, 0.0005, *_SECONDS[:-2])
_GAUGES = {
    "in_flight": "Requests under way.",
    "body_bytes": "Bytes of requests' bodies that are held in memory.",
    "ready": "1 while new work is admitted.",
    "store_bytes": "Bytes that stored files take on disk.",
    "models_stored": "Models in the store.",
    "models_loaded": "Models with a worker process.",
}
_STAGES = {
    "tokenize": "Of a request at the tokenizer.",
    "queue": "From a request's arrival at its model to its first pass through it.",
    "compute": "Of a request in passes through the model, which it may have shared with others.",
    "serialize": "Of writing the body of a reply.",
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one request had of a model. tokens_out: None where nothing was written. seconds: of all of it. items: how
    many it brought. timing: None of what is written, whose passes are those of others too."""

    model: LoadedModel
    tokens_in: int
    seconds: float
    timing: Timing | None
    tokens_out: int | None = None
    items: int = 1


class Metrics:
    def __init__(self, gauges: dict[str, Callable[[], float]], collectors: Iterable[Collector] = ()) -> None:
        """gauges: the current value of each name in `_GAUGES`, asked at each scrape, as the collectors are."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each that says when it began, of which nobody makes any use
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        answered = ["method", "route", "model", "status"]
        self._requests = self._counter("requests", "Answered requests; status 499: the client left first.", answered)
        text = "From the request's headers to its last byte handed to the system."
        self._seconds = self._histogram("request_seconds", text, _SECONDS, ["route", "model", "status"])
        self._mock = self._counter("mock_responses", "Replies marked MOCK.")
        about = ["model", "implementation"]
        self._prompt = self._counter("prompt_tokens", "Tokens that requests brought to models.", about)
        self._written = self._counter("generated_tokens", "Tokens that models wrote.", about)
        self._stages = {
            name: self._histogram(f"{name}_seconds", about, _SHORT, ["model"]) for name, about in _STAGES.items()
        }
        text = "From the request's headers to the first piece of a streamed answer."
        self._first = self._histogram("time_to_first_token_seconds", text, _SECONDS, ["model"])
        text = "From one piece of a streamed answer to the next, by its tokens."
        self._next = self._histogram("inter_token_seconds", text, _SHORT, ["model"])
        for name, about_gauge in _GAUGES.items():
            Gauge(PREFIX + name, about_gauge, registry=self._registry).set_function(gauges[name])
        self._aliases = Aliases()
        for collector in (self._aliases, *collectors):
            self._registry.register(collector)

    def _counter(self, name: str, about: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(PREFIX + name, about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], labels: Iterable[str]) -> Histogram:
        return Histogram(PREFIX + name, about, labels, buckets=buckets, registry=self._registry)

    def label(self, model: str) -> str:
        """A model's name as a label."""
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return OTHER
            self._models.add(model)
        return model

    def answered(self, method: str, route: str, status: int, seconds: float, *, model: str = "") -> None:
        """route: the pattern, never the path. model: a label already, empty where none was asked or known."""
        self._requests.labels(method, route, model, str(status)).inc()
        self._seconds.labels(route, model, str(status)).observe(seconds)

    def worked(self, work: Work) -> None:
        """A model has answered a request."""
        model, implementation = self.label(work.model.id), work.model.implementation
        self._aliases.worked(work.model.task, work.items, work.seconds, work.timing)
        self._prompt.labels(model, implementation).inc(work.tokens_in)
        if work.tokens_out is not None:
            self._written.labels(model, implementation).inc(work.tokens_out)
        if implementation == "MOCK":
            self._mock.inc()
        if implementation == "MOCK" or work.timing is None:
            return
        self._stages["tokenize"].labels(model).observe(work.timing.tokenize_s)
        self._stages["queue"].labels(model).observe(work.timing.queue_s)
        self._stages["compute"].labels(model).observe(work.timing.compute_s)

    def failed(self, error: NodeError) -> None:
        """A request to a model got no answer."""
        self._aliases.failed(error)

    def serialized(self, model: LoadedModel, seconds: float) -> None:
        self._stages["serialize"].labels(self.label(model.id)).observe(seconds)

    def piece(self, model: LoadedModel, seconds: float, *, first: bool, tokens: int = 1) -> None:
        """A piece of a streamed answer came: seconds after the request if it is the first, else after the one before.
        tokens: how many it holds; the time is shared out among them."""
        label = self.label(model.id)
        if first:
            self._first.labels(label).observe(seconds)
            return
        for _ in range(tokens):
            self._next.labels(label).observe(seconds / tokens)

    def page(self) -> bytes:
        return generate_latest(self._registry)
