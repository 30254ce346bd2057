"""What loaded models are at, for Prometheus: asked of the registry when the page is made. The figures of a model begin
anew when it is loaded again.

Beside our own names stand those of text-embeddings-inference (``te_…``), for dashboards that were made for it. They are
the sums over all models, for that server has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ipfs_accelerate_node.api.metrics import MAX_MODELS, OTHER, PREFIX
from ipfs_accelerate_node.inference import LoadedModel
from ipfs_accelerate_node.inference.model import ModelStats

STATES = ("fetching", "converting", "loading", "warming", "ready", "draining")
_LABELS = ["model", "task", "device"]
Values = dict[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class _Figure:
    """of: the field of `ModelStats`."""

    name: str
    of: str
    about: str


_GAUGES = (
    _Figure("queue_requests", "waiting", "Requests that wait for the model, not counting those its worker has."),
    _Figure("queue_tokens", "waiting_tokens", "Tokens of all requests that wait or are computed, as estimated."),
    _Figure("worker_requests", "flying", "Requests that the model's worker has."),
    _Figure("batch_last_rows", "last_rows", "Rows of the model's last pass."),
    _Figure("batch_last_tokens", "last_tokens", "Tokens of the model's last pass, without padding."),
    _Figure("batch_last_padded_tokens", "last_padded", "Tokens of the model's last pass, with padding."),
    _Figure("tokens_per_second", "tokens_per_s", "As measured lately; what waiting times are judged by."),
)
_COUNTERS = (
    _Figure("model_requests", "requests", "Requests to the model, those included that were refused."),
    _Figure("model_failed", "failed", "Requests that ended with an error of the model or of its process."),
    _Figure("cancelled", "dropped", "Requests whose client left before they were answered."),
    _Figure("expired", "expired", "Requests whose deadline passed before they were answered."),
    _Figure("shed", "shed", "Requests that were refused at once, for too much was waiting."),
    _Figure("shared", "shared", "Requests that were answered by the computation of an identical one."),
    _Figure("truncated", "truncated", "Texts that were cut to what the model takes."),
    _Figure("batches", "passes", "Passes through the model."),
    _Figure("batch_rows", "rows", "Rows of all passes."),
    _Figure("batch_tokens", "tokens", "Tokens of all passes, without padding."),
    _Figure("batch_padded_tokens", "padded", "Tokens of all passes, with padding."),
    _Figure("model_tokenize_seconds", "tokenize_s", "Time of the model's tokenizer."),
    _Figure("model_queue_seconds", "queue_s", "Time that requests to the model have waited."),
    _Figure("model_compute_seconds", "compute_s", "Time of the model's passes."),
)


class Models(Collector):
    def __init__(self, loaded: Callable[[], Sequence[LoadedModel]], stats: Callable[[], Sequence[ModelStats]]) -> None:
        self._loaded = loaded
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of a node that is still being built."""
        return ()

    def collect(self) -> Iterable[Metric]:
        stats, loaded = self._stats(), self._loaded()
        for figure in _GAUGES:
            yield _family(GaugeMetricFamily, figure, stats)
        for figure in _COUNTERS:
            yield _family(CounterMetricFamily, figure, stats)
        yield _padding(stats)
        yield from _states(loaded)
        yield _load_seconds(stats)
        yield from _aliases(stats)


def _key(model: LoadedModel | ModelStats) -> tuple[str, ...]:
    return (model.id if isinstance(model, LoadedModel) else model.model, model.task, model.device)


def _summed(pairs: Iterable[tuple[tuple[str, ...], float]]) -> Values:
    """Bounded, whatever the number of models: the rest together."""
    values: Values = {}
    for key, value in pairs:
        kept = key if key in values or len(values) < MAX_MODELS else (OTHER,) * len(key)
        values[kept] = values.get(kept, 0.0) + value
    return values


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], figure: _Figure, stats: Sequence[ModelStats]
) -> Metric:
    family = kind(PREFIX + figure.name, figure.about, labels=_LABELS)
    read = attrgetter(figure.of)
    for key, value in _summed((_key(one), read(one)) for one in stats).items():
        family.add_metric(list(key), value)
    return family


def _padding(stats: Sequence[ModelStats]) -> Metric:
    about = "Share of padding in the model's passes."
    family = GaugeMetricFamily(PREFIX + "batch_padding_ratio", about, labels=_LABELS)
    padded = _summed((_key(one), one.padded) for one in stats)
    tokens = _summed((_key(one), one.tokens) for one in stats)
    for key, with_padding in padded.items():
        ratio = 1 - tokens[key] / with_padding if with_padding else 0.0
        family.add_metric(list(key), max(0.0, ratio))
    return family


def _states(loaded: Sequence[LoadedModel]) -> Iterable[Metric]:
    about = "1 for the state that the model is in."
    states = GaugeMetricFamily(PREFIX + "model_state", about, labels=[*_LABELS, "state"])
    is_in = _summed(((*_key(one), state), float(one.state == state)) for one in loaded for state in STATES)
    for key, value in is_in.items():
        states.add_metric(list(key), min(value, 1.0))
    yield states
    sizes: tuple[tuple[str, Callable[[LoadedModel], int], str], ...] = (
        ("model_resident_bytes", lambda one: one.memory_bytes, "Resident memory of the model's process."),
        ("model_device_bytes", lambda one: one.device_bytes, "What the model takes of its device's own memory."),
    )
    for name, size, text in sizes:
        family = GaugeMetricFamily(PREFIX + name, text, labels=_LABELS)
        for key, value in _summed((_key(one), size(one)) for one in loaded).items():
            family.add_metric(list(key), value)
        yield family


def _load_seconds(stats: Sequence[ModelStats]) -> Metric:
    about = "Of the model's last load, by phase."
    family = GaugeMetricFamily(PREFIX + "load_seconds", about, labels=[*_LABELS, "phase"])
    for key, value in _summed(((*_key(o), name), s) for o in stats for name, s in o.load_phases.items()).items():
        family.add_metric(list(key), value)
    return family


def _aliases(stats: Sequence[ModelStats]) -> Iterable[Metric]:
    yield GaugeMetricFamily("te_queue_size", "As ..._queue_requests.", sum(one.waiting for one in stats))
    passes = sum(one.passes for one in stats)
    for name, about, total in (
        ("te_batch_next_size", "Rows by pass.", sum(one.rows for one in stats)),
        ("te_batch_next_tokens", "Tokens by pass.", sum(one.tokens for one in stats)),
        ("te_batch_inference_duration", "Seconds by pass.", sum(one.compute_s for one in stats)),
    ):
        yield HistogramMetricFamily(name, f"{about} Sum and count alone.", [("+Inf", passes)], total)
