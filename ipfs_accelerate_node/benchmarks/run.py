"""One benchmark from the first warm-up to the published record."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.benchmarks.publish import publish
from ipfs_accelerate_node.benchmarks.record import benchmark_record, json_value
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.benchmarks.workload import EMBEDDING, Embed, Measured, Workload, measure, refuse_mock
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference.model import LoadedModel
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, Sealed, open_envelope, seal
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store.types import StoredModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """record: as JSON has it, links as CID strings. signer: PeerID of the node key.

    published: both blocks are pinned in Kubo and were read back by CID. note: why not, where publishing was asked for,
    or why nobody has been told yet.
    """

    record: dict[str, object]
    record_cid: str
    envelope_cid: str
    signer: str
    published: bool
    note: str | None


async def bench(
    loaded: LoadedModel,
    *,
    embed: Embed,
    model: StoredModel | None,
    key: NodeKey,
    cache: Path,
    client: KuboClient | None,
    workload: Workload = EMBEDDING,
) -> BenchResult:
    """Measures loaded through embed (the path of a request), signs the record and keeps it under cache.

    client: where to publish it; None keeps it here only. A failure to publish is not a failure of the measurement: it
    is in the result's note.
    Raises BadRequest(mock_not_measurable) before anything ran, InferenceFailed, StorageError, and what embed raises.
    """
    refuse_mock(loaded)
    measured = await measure(workload, loaded, embed)
    sealed, record = await asyncio.to_thread(_keep, RecordShelf(cache), workload, measured, model, key)
    log.info("bench.done root=%s device=%s record=%s", loaded.root, loaded.device, sealed.record_cid)
    published, note = await _publish(client, sealed, cache) if client is not None else (False, None)
    return BenchResult(
        record=record,
        record_cid=str(sealed.record_cid),
        envelope_cid=str(sealed.envelope_cid),
        signer=key.peer_id,
        published=published,
        note=note,
    )


async def publish_kept(envelope: Cid, *, cache: Path, client: KuboClient) -> BenchResult:
    """Publishes a record that an earlier `bench` kept, byte for byte. Raises NotFound, BadContent, StorageError."""
    sealed = await asyncio.to_thread(RecordShelf(cache).sealed, envelope)
    opened = open_envelope(sealed.envelope_bytes, sealed.record_bytes, BENCH_PREFIX)
    published, note = await _publish(client, sealed, cache)
    return BenchResult(
        record={name: json_value(value) for name, value in opened.record.items()},
        record_cid=str(sealed.record_cid),
        envelope_cid=str(sealed.envelope_cid),
        signer=opened.signer,
        published=published,
        note=note,
    )


def _keep(
    shelf: RecordShelf, workload: Workload, measured: Measured, model: StoredModel | None, key: NodeKey
) -> tuple[Sealed, dict[str, object]]:
    record = benchmark_record(workload, measured, model, created=int(time.time()), seq=shelf.next_seq())
    sealed = seal(record, key, BENCH_PREFIX)
    shelf.keep(sealed)
    return sealed, {name: json_value(value) for name, value in record.items()}


async def _publish(client: KuboClient, sealed: Sealed, cache: Path) -> tuple[bool, str | None]:
    """Whether it is published, and what the user should know about it."""
    try:
        note = await publish(client, sealed)
        await asyncio.to_thread(RecordShelf(cache).note_published, sealed.envelope_cid)
        return True, note
    except NodeError as exc:
        log.warning("record.not_published record=%s reason=%s", sealed.record_cid, exc)
        return False, f"kept here, not published: {exc}"
