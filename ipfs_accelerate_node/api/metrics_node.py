"""What the rest of the node did, for Prometheus: fetched, kept, given to others, published; and how the event loop
fares. Asked when the page is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipfs_accelerate_node.api.limiter import Giving
from ipfs_accelerate_node.api.metrics import OTHER, PREFIX
from ipfs_accelerate_node.api.watchdog import Watchdog
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.store.source_records import SourceRecord

MAX_SOURCES = 32  # by name; the others together


class _Described(Collector):
    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of a node that is still being built."""
        return ()


class Given(_Described):
    """What the node gave to others, of all its listeners together."""

    def __init__(self, giving: Giving) -> None:
        self._giving = giving

    def collect(self) -> Iterable[Metric]:
        about = "Content sent to those who fetch from us."
        given = CounterMetricFamily(PREFIX + "given_bytes", about, labels=["kind"])
        for kind, size_bytes in sorted(self._giving.given_bytes.items()):
            given.add_metric([kind], size_bytes)
        yield given
        yield CounterMetricFamily(
            PREFIX + "transfers_refused",
            "Asked for while as many as are allowed were under way.",
            self._giving.refused,
        )
        yield CounterMetricFamily(
            PREFIX + "transfers_cut",
            "Ended for others who waited: hardly anything of them was taken.",
            self._giving.cut,
        )
        yield GaugeMetricFamily(PREFIX + "transfers", "Replies with content under way.", self._giving.active)


class Fetched(_Described):
    """By kind of source over the node's whole life: the totals outlive a restart."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        records = self._node.store.source_records.all()
        for name, about, read in (
            ("fetched_bytes", "Verified bytes that were fetched, by kind of source.", _bytes),
            ("fetch_seconds", "Time in which sources delivered, by kind of source.", _seconds),
        ):
            family = CounterMetricFamily(PREFIX + name, about, labels=["kind"])
            by_kind: Counter[str] = Counter()
            for record in records:
                by_kind[record.kind] += read(record)  # type: ignore[assignment]  # seconds are no whole number
            for kind, value in sorted(by_kind.items()):
                family.add_metric([kind], value)
            yield family
        about = "Answers that failed a check, by source."
        rejected = CounterMetricFamily(PREFIX + "fetch_rejected", about, labels=["source", "kind"])
        for key, value in _worst(records).items():
            rejected.add_metric(list(key), value)
        yield rejected
        about = "Callers who waited for what another one had begun to fetch."
        yield CounterMetricFamily(PREFIX + "fetch_joins", about, self._node.hub.joins)


class Kept(_Described):
    """The store, pins, and what others know of this node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        store, exchange = self._node.store, self._node.exchange
        yield GaugeMetricFamily(PREFIX + "models_pinned", "Pinned models.", sum(m.pinned for m in store.models()))
        jobs = GaugeMetricFamily(PREFIX + "pins", "Pins that were asked for in this run, by state.", labels=["state"])
        for state, count in sorted(Counter(job.state for job in self._node.pin_jobs()).items()):
            jobs.add_metric([state], count)
        yield jobs
        evicted = store.evicted
        yield CounterMetricFamily(PREFIX + "evictions", "Models and files deleted for room.", evicted.count)
        yield CounterMetricFamily(PREFIX + "evicted_bytes", "Bytes freed for room.", evicted.size_bytes)
        yield GaugeMetricFamily(PREFIX + "peers", "Nodes that are configured or were added.", len(exchange.book.all()))
        about = "Records of benchmarks that were published in this run."
        yield CounterMetricFamily(PREFIX + "benchmarks_published", about, exchange.published)


class Loop(_Described):
    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def collect(self) -> Iterable[Metric]:
        about = "Times that the event loop was held up for longer than it may be."
        yield CounterMetricFamily(PREFIX + "event_loop_blocked", about, self._watchdog.blocked)
        about = "The longest of them."
        yield GaugeMetricFamily(PREFIX + "event_loop_longest_block_seconds", about, self._watchdog.longest_s)


def _bytes(record: SourceRecord) -> float:
    return record.bytes


def _seconds(record: SourceRecord) -> float:
    return record.seconds


def _worst(records: Sequence[SourceRecord]) -> dict[tuple[str, str], int]:
    """Those that failed most often by name."""
    values: dict[tuple[str, str], int] = {}
    for record in sorted(records, key=lambda one: (-one.rejected, one.source)):
        key = (record.source, record.kind) if len(values) < MAX_SOURCES else (OTHER, OTHER)
        values[key] = values.get(key, 0) + record.rejected
    return values
