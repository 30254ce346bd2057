"""What dashboards of text-embeddings-inference show, under the names that they ask for (``te_…``). That server counts
under names without ``_total``, so these have no type here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ipfs_accelerate_node.errors import BadRequest, NodeError, Overloaded
from ipfs_accelerate_node.inference.model import Timing

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_KINDS = {"embedding": "embed", "text-classification": "predict", "rerank": "rerank"}
_STAGES = ("", "_tokenization", "_queue", "_inference")


class Aliases(Collector):
    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._seconds = {
            f"te_{of}{stage}_duration": _histogram(f"te_{of}{stage}_duration")
            for of in ("request", *_KINDS.values())
            for stage in _STAGES
        }

    def worked(self, task: str, items: int, seconds: float, timing: Timing | None) -> None:
        method = "single" if items == 1 else "batch"
        self._asked[method] += 1
        self._answered[method] += 1
        kind = _KINDS.get(task)
        if kind is not None:
            self._kinds[kind] += items
        for of in ("request", kind):
            if of is None:
                continue
            parts = () if timing is None else (timing.tokenize_s, timing.queue_s, timing.compute_s)
            for stage, value in zip(_STAGES, (seconds, *parts), strict=False):
                self._seconds[f"te_{of}{stage}_duration"].observe(value)

    def failed(self, error: NodeError) -> None:
        self._asked["single"] += 1
        match error:
            case Overloaded():
                self._failures["overloaded"] += 1
            case BadRequest():
                self._failures["validation"] += 1
            case _:
                self._failures["inference"] += 1

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield _counted("te_request_count", "As ..._requests_total of inference.", "method", self._asked)
        yield _counted("te_request_success", "Of them, those that a model answered.", "method", self._answered)
        yield _counted("te_request_failure", "Of them, those that it did not.", "err", self._failures)
        for kind in _KINDS.values():
            count = Metric(f"te_{kind}_count", f"Items of requests to {kind}.", "unknown")
            count.add_sample(count.name, {}, self._kinds[kind])
            yield count
        for histogram in self._seconds.values():
            yield from histogram.collect()


def _histogram(name: str) -> Histogram:
    return Histogram(name, "Seconds of a request, or of a part of its way.", buckets=_SECONDS, registry=None)


def _counted(name: str, about: str, label: str, values: Counter[str]) -> Metric:
    metric = Metric(name, about, "unknown")
    for key, value in sorted(values.items()):
        metric.add_sample(name, {label: key}, value)
    return metric
