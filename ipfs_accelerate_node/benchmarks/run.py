"""Benchmarks of one model from the first warm-up to the published records: every workload on every device asked for.

The reference (torch on the CPU in f32) is asked first, where there is time for it, so that a record can say how far its
device agrees with it; a device that computes something else is not measured. What was not loaded before is unloaded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ipfs_accelerate_node.benchmarks.figures import Figures, figures
from ipfs_accelerate_node.benchmarks.loading import fetched, held, measure_loads
from ipfs_accelerate_node.benchmarks.machine_state import LIMITS, Limits, why_busy
from ipfs_accelerate_node.benchmarks.measure import Measured, measure
from ipfs_accelerate_node.benchmarks.progress import Doing, Tell, Telling
from ipfs_accelerate_node.benchmarks.publish import publish
from ipfs_accelerate_node.benchmarks.record import Circumstances, benchmark_record, json_value
from ipfs_accelerate_node.benchmarks.report import REFERENCE_DEVICE, REFERENCE_PRECISION
from ipfs_accelerate_node.benchmarks.report import Here as Reported
from ipfs_accelerate_node.benchmarks.schema import read_benchmark
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.benchmarks.trial import Agreement, agreement, reference, verdict
from ipfs_accelerate_node.benchmarks.trial import Workload as Compared
from ipfs_accelerate_node.benchmarks.workload import Workload, refuse_mock, usual, workload
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.reference import MockRef, parse_reference
from ipfs_accelerate_node.errors import BadRequest, Conflict, InferenceFailed, NodeError, Unavailable
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.inference.devices import canonical
from ipfs_accelerate_node.inference.model import Accelerator, Item, LoadedModel
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, Sealed, open_envelope, seal
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store.types import StoredModel

log = logging.getLogger(__name__)

ALL_DEVICES = "all"


class Here(Reported, Protocol):
    """What a benchmark needs of a node."""

    def pin_job(self, id_or_root: str) -> PinJob | None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure. device: one, ``auto`` or ``all``. task, precision: None is the model's first, and f32.
    workloads: by name; none are the usual ones of the task. quick: fewer of them, repeated less often, nothing compared
    with the reference. even_if_busy: keep a record also when the machine was too busy, marked as such."""

    ref: str
    device: str = "auto"
    task: str | None = None
    precision: str | None = None
    workloads: tuple[str, ...] = ()
    quick: bool = False
    even_if_busy: bool = False


@dataclass(frozen=True, slots=True)
class BenchResult:
    """record: as JSON has it, links as CID strings. figures: what its samples say. signer: PeerID of the node key.

    published: both blocks are pinned in Kubo and were read back by CID. queued: they will be, as soon as that can be
    done. note: why not, where publishing was asked for, or why nobody has been told yet; or why the machine was too
    busy for the figures to mean anything.
    """

    record: dict[str, object]
    figures: Figures
    record_cid: str
    envelope_cid: str
    signer: str
    published: bool = False
    note: str | None = None
    queued: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was not measured, and why. workload: empty where none could be. code: of the error."""

    device: str
    workload: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    results: tuple[BenchResult, ...]
    left_out: tuple[LeftOut, ...]


async def bench(
    here: Here,
    wish: Wish,
    *,
    key: NodeKey,
    cache: Path,
    threads: int,
    client: KuboClient | None = None,
    limits: Limits = LIMITS,
    tell: Tell = lambda _: None,
) -> Bench:
    """Measures, signs each record and keeps it under cache.

    client: where to publish them; None keeps them here only. A failure to publish is not a failure of the measurement:
    it is in the result's note. threads: of the CPU that a worker may use. tell: what it is at, as it goes.
    Raises, if nothing at all could be measured, what stood in the way of the first: BadRequest(mock_not_measurable,
    nothing_fetched), InvalidInput, DeviceUnavailable, Unavailable(machine_busy), InferenceFailed, StorageError, ….
    """
    refuse_mocks(wish.ref)
    named = [workload(name) for name in dict.fromkeys(wish.workloads)]
    stored = await asyncio.to_thread(here.find, wish.ref)
    run = _Run(
        here, wish, [w.quick() if wish.quick else w for w in named], stored, key, cache, threads, limits, Telling(tell)
    )
    await run.all()
    if not run.results and run.errors:
        raise run.errors[0]
    log.info("bench.done root=%s records=%d left_out=%d", stored.root, len(run.results), len(run.left_out))
    results = run.results
    if client is not None:
        for number, result in enumerate(results):
            tell(Doing("", "", "publishing", number, len(results)))
            results[number] = await _published(client, result, cache)
    return Bench(tuple(results), tuple(run.left_out))


def refuse_mocks(ref: str) -> None:
    if isinstance(parse_reference(ref), MockRef):
        raise BadRequest(f"{ref} is a mock: mocks are never measured or published", code="mock_not_measurable")


@dataclass(slots=True)
class _Run:
    here: Here
    wish: Wish
    named: list[Workload]
    stored: StoredModel
    key: NodeKey
    cache: Path
    threads: int
    limits: Limits
    tell: Telling
    results: list[BenchResult] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    errors: list[NodeError] = field(default_factory=list)
    compared: Compared | None = None
    devices: dict[str, str] = field(default_factory=dict)  # device → what its runtime calls it

    @property
    def root(self) -> str:
        return str(self.stored.root)

    async def all(self) -> None:
        for found in self.named:
            if found.kind == "fetch":
                await self._fetch(found)
        if self.named and all(found.kind == "fetch" for found in self.named):
            return
        accelerators = await self.here.accelerators()
        self.devices = {found.device: found.name for found in accelerators}
        for device in _wanted(self.wish.device, accelerators):
            try:
                await self._device(device)
            except NodeError as exc:
                self._leave_out(device, "", exc)

    async def _fetch(self, found: Workload) -> None:
        job = self.here.pin_job(self.root)
        receipt = job.receipt if job else None
        try:
            measured = fetched(receipt, self.root)
            around = Circumstances(self.stored, self.threads, sources=receipt.sources if receipt else ())
            await self._keep(found, measured, around, "")
        except NodeError as exc:
            self._leave_out("network", found.name, exc)

    async def _device(self, device: str) -> None:
        """All workloads on one device. ``auto`` is followed to the device that it means, and measured there."""
        wish = self.wish
        device = await self._meant(device)
        await self._compare_first(device)
        self.tell(Doing(device, "", "loading"))
        if any(found.kind == "load" for found in self.named) or not (self.named or wish.quick):
            await self._loads(device)
        requests = [found for found in self.named if found.kind not in ("load", "fetch")]
        if self.named and not requests:
            return
        async with self._held(device) as model:
            refuse_mock(model)
            self.tell(Doing(model.device, "", "comparing"))
            agreed = await self._agreement(model)
            for found in requests or usual(model.task, quick=wish.quick):
                await self._request(found, model, agreed)

    async def _meant(self, device: str) -> str:
        if device != "auto":
            return device
        self.tell(Doing(device, "", "loading"))
        async with self._held(device) as model:
            refuse_mock(model)
            return model.device

    def _held(self, device: str, precision: str | None = None) -> AbstractAsyncContextManager[LoadedModel]:
        wanted = precision or self.wish.precision or REFERENCE_PRECISION
        registry, serving = self.here.registry, self.here.serving
        return held(registry, serving, self.root, device=device, precision=wanted, task=self.wish.task)

    async def _compare_first(self, device: str) -> None:
        """The reference's own answers; without them (it may not run here) records say nothing of an agreement."""
        if self.wish.quick or self.compared is not None or self._is_reference(device, self.wish.precision or "f32"):
            return
        if all(found.kind in ("load", "fetch") for found in self.named) and self.named:
            return
        self.tell(Doing(REFERENCE_DEVICE, "", "reference"))
        try:
            async with self._held(REFERENCE_DEVICE, REFERENCE_PRECISION) as model:
                self.compared = await reference(self.here.registry, model)
        except NodeError as exc:
            log.info("bench.no_reference root=%s reason=%s", self.root, exc)

    @staticmethod
    def _is_reference(device: str, precision: str) -> bool:
        return (device, precision) == (REFERENCE_DEVICE, REFERENCE_PRECISION)

    async def _agreement(self, model: LoadedModel) -> Agreement | None:
        """Raises InferenceFailed (output_differs): its speed would be that of another computation."""
        if self._is_reference(model.device, model.precision):
            return Agreement(1.0, 1.0, None, None)
        if self.compared is None:
            return None
        found = await agreement(self.here.registry, model, self.compared)
        if refusal := verdict(found, model.precision):
            raise InferenceFailed(refusal, code="output_differs")
        return found

    async def _loads(self, device: str) -> None:
        found = next((w for w in self.named if w.kind == "load"), None) or workload("load")
        wish, registry, serving = self.wish, self.here.registry, self.here.serving
        try:
            measured = await measure_loads(
                found,
                registry,
                serving,
                self.root,
                device=device,
                precision=wish.precision,
                task=wish.task,
                tell=self.tell.of(device, found.name),
            )
            await self._judged(found, measured, None)
        except NodeError as exc:
            self._leave_out(device, found.name, exc)

    async def _request(self, found: Workload, model: LoadedModel, agreed: Agreement | None) -> None:
        async def examples(count: int) -> list[Item]:
            return await self.here.registry.examples(model, count)

        try:
            registry = self.here.registry
            tell = self.tell.of(model.device, found.name)
            done = await measure(found, model, self.here.serving, examples, working=lambda: registry.working, tell=tell)
            await self._judged(found, done, agreed)
        except NodeError as exc:
            self._leave_out(model.device, found.name, exc)

    async def _judged(self, found: Workload, measured: Measured, agreed: Agreement | None) -> None:
        """Kept, unless the machine was too busy: then only where that was asked for, and marked."""
        busy = why_busy(measured.state, measured.samples_ns, self.limits)
        if busy and not self.wish.even_if_busy:
            raise _too_busy(found, measured, busy)
        name = self.devices.get(measured.model.device, "")
        around = Circumstances(self.stored, self.threads, name, agreed, busy=bool(busy))
        await self._keep(found, measured, around, busy)

    async def _keep(self, found: Workload, measured: Measured, around: Circumstances, busy: str) -> None:
        shelf = RecordShelf(self.cache)

        def signed() -> tuple[Sealed, BenchResult]:
            record = benchmark_record(found, measured, around, created=int(time.time()), seq=shelf.next_seq())
            derived = figures(read_benchmark(record, busy=around.busy))
            sealed = seal(record, self.key, BENCH_PREFIX)
            shelf.keep(sealed)
            shown = {name: json_value(value) for name, value in record.items()}
            cids = str(sealed.record_cid), str(sealed.envelope_cid)
            return sealed, BenchResult(
                shown, derived, *cids, self.key.peer_id, note=f"machine busy: {busy}" if busy else None
            )

        sealed, result = await asyncio.to_thread(signed)
        log.info("bench.kept root=%s workload=%s record=%s", self.root, found.name, sealed.record_cid)
        self.results.append(result)

    def _leave_out(self, device: str, name: str, error: NodeError) -> None:
        log.info("bench.left_out root=%s device=%s workload=%s reason=%s", self.root, device, name, error)
        self.left_out.append(LeftOut(device, name, error.code, " ".join(str(error).split())))
        self.errors.append(error)


def _wanted(device: str, found: Sequence[Accelerator]) -> list[str]:
    """Raises DeviceUnavailable for what no runtime calls a device."""
    if device == ALL_DEVICES:
        return [accelerator.device for accelerator in found if accelerator.available]
    return [canonical(device)]


def _too_busy(found: Workload, measured: Measured, why: str) -> Unavailable:
    state = measured.state
    return Unavailable(
        f"the machine was too busy to measure {found.name}: {why}; bench --even-if-busy keeps it here, marked",
        code="machine_busy",
        workload=found.name,
        samples_ns=list(measured.samples_ns),
        cores=state.cores,
        load_before=state.load_before,
        load_during=state.load_during,
        others=state.others,
    )


async def publish_kept(
    envelope: Cid, *, cache: Path, client: KuboClient | None, check: Callable[[Cid], None] = lambda root: None
) -> BenchResult:
    """Publishes a record that an earlier `bench` kept, byte for byte. client: None where that cannot be done now.
    check: raises where a model is not to be spoken of. Raises NotFound, Conflict (machine_busy: such a record stays
    here), BadContent, StorageError."""
    sealed = await asyncio.to_thread(RecordShelf(cache).sealed, envelope)
    opened = open_envelope(sealed.envelope_bytes, sealed.record_bytes, BENCH_PREFIX)
    found = read_benchmark(opened.record, busy=True)
    if found.busy:
        raise Conflict("the machine was busy when this was measured; such a record stays here", code="machine_busy")
    await asyncio.to_thread(check, found.root)
    result = BenchResult(
        record={name: json_value(value) for name, value in opened.record.items()},
        figures=figures(found),
        record_cid=str(sealed.record_cid),
        envelope_cid=str(sealed.envelope_cid),
        signer=opened.signer,
    )
    return result if client is None else await _published(client, result, cache)


async def _published(client: KuboClient, result: BenchResult, cache: Path) -> BenchResult:
    """The same result, published if that went well; else its note says why not."""
    if result.note is not None:
        return replace(result, note=f"kept here, not published: {result.note}")
    shelf = RecordShelf(cache)
    try:
        sealed = await asyncio.to_thread(shelf.sealed, Cid.parse(result.envelope_cid))
        note = await publish(client, sealed)
        await asyncio.to_thread(shelf.note_published, sealed.envelope_cid)
    except NodeError as exc:
        log.warning("record.not_published record=%s reason=%s", result.record_cid, exc)
        return replace(result, note=f"kept here, not published: {exc}")
    return replace(result, published=True, note=note)
