"""What earlier fetches taught about sources: the order in which the next one asks them, and what they need not be
asked again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator, Sequence

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.outcome import Fetched
from ipfs_accelerate_node.fetch.threads import in_thread
from ipfs_accelerate_node.sources.source import Abilities, Source
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.source_records import Conduct

# Says nothing against a source: what it lacks, that it has much to do, that it knows no ranges.
_BLAMELESS = frozenset({"not_found", "blocked", "rate_limited", "no_ranges"})


def abilities(store: Store, source: str) -> Abilities:
    """What a server was seen to do; it need not be probed again."""
    record = store.source_records.find(source, time.time())
    return Abilities() if record is None else Abilities(ranges=record.ranges, cars=record.cars)


def by_record(store: Store, sources: Sequence[Source]) -> list[Source]:
    """Those of bad record last, the worst at the end; the rest as they were."""

    def strikes(source: Source) -> int:
        record = store.source_records.find(source.name, time.time())
        return record.strikes if record is not None and record.bad else 0

    return sorted(sources, key=strikes)


def told(store: Store, source: str) -> str | None:
    """Why a source is asked after the others, for a person; None for one that is not."""
    record = store.source_records.find(source, time.time())
    if record is None or not record.bad:
        return None
    lies = f"sent wrong bytes {record.rejected} times, " if record.rejected else ""
    return f"asked last: {lies}{'latest fault ' + record.fault if record.fault else 'its latest fetch was good'}"


async def remembered(store: Store, sources: Sequence[Source], fetch: Awaitable[Fetched]) -> Fetched:
    """The outcome of a fetch from these sources, which is taken down whatever it is, unless it was cancelled."""
    outcome: Fetched | NodeError
    try:
        outcome = await fetch
    except NodeError as exc:
        outcome = exc
    await in_thread(remember, store, sources, outcome)
    if isinstance(outcome, NodeError):
        raise outcome
    return outcome


def remember(store: Store, sources: Sequence[Source], outcome: Fetched | NodeError) -> None:
    """Takes down what each source did; blocking. Sources that were not asked keep their record as it is."""
    conducts = _of_fetched(sources, outcome) if isinstance(outcome, Fetched) else _of_failed(sources, outcome)
    store.source_records.note(list(conducts), time.time())


def _of_fetched(sources: Sequence[Source], fetched: Fetched) -> Iterator[Conduct]:
    if fetched.already_here:
        return
    named = {source.name: source for source in sources}
    faults = {failure.source: _fault(failure.kind, failure.code) for failure in fetched.failures}
    for share in fetched.sources:
        seen = _seen(named.get(share.source))
        yield Conduct(
            source=share.source,
            kind=share.kind,
            bytes=share.bytes,
            seconds=share.seconds,
            rejected=share.rejected,
            fault=faults.get(share.source),
            ranges=seen.ranges,
            cars=seen.cars,
        )


def _of_failed(sources: Sequence[Source], error: NodeError) -> Iterator[Conduct]:
    named = {source.name: source for source in sources}
    attempts = error.detail.get("attempts")
    for attempt in attempts if isinstance(attempts, list) else ():
        source, code = str(attempt["source"]), str(attempt["code"])
        seen = _seen(named.get(source))
        yield Conduct(
            source=source,
            kind=str(attempt["kind"]),
            rejected=int(code == "hash_mismatch"),
            fault=_fault(str(attempt["kind"]), code),
            ranges=seen.ranges,
            cars=seen.cars,
        )


def _fault(kind: str, code: str) -> str | None:
    """Kubo is the whole network: that it was slow, or had to start, says nothing of the next time."""
    if code in _BLAMELESS or (kind == "kubo" and code != "hash_mismatch"):
        return None
    return code


def _seen(source: Source | None) -> Abilities:
    found = getattr(source, "abilities", None)
    return found if isinstance(found, Abilities) else Abilities()
