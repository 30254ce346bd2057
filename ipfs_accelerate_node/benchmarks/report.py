"""Every model on every device, through the path of a request: what is REAL, by what evidence, and how fast.

The reference is torch on the CPU in f32. It is loaded first, gives the workload (sample inputs, its outputs, its greedy
tokens) and, where asked for, its own cell; then each device is loaded by name, read back, compared and timed. One model
is in memory at a time, and what was loaded before stays loaded. Mocks are named as what they are and never run.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.benchmarks.cells import Cell, Report, Status
from ipfs_accelerate_node.benchmarks.record import machine
from ipfs_accelerate_node.benchmarks.trial import (
    Agreement,
    Workload,
    agreement,
    peak_bytes,
    reference,
    speed,
    verdict,
)
from ipfs_accelerate_node.content.reference import MockRef, parse_reference
from ipfs_accelerate_node.errors import DeviceUnavailable, InferenceFailed, NodeError
from ipfs_accelerate_node.inference.devices import canonical, check_available, kind_of
from ipfs_accelerate_node.inference.model import Accelerator, LoadedModel
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.serving import Serving
from ipfs_accelerate_node.store.types import StoredModel

log = logging.getLogger(__name__)

ALWAYS = ("cpu", "openvino:CPU", "cuda:0")  # rows of every report, UNAVAILABLE where there is no such device
REFERENCE_DEVICE, REFERENCE_PRECISION = "cpu", "f32"


class Here(Protocol):
    """What the report needs of a node."""

    @property
    def registry(self) -> Registry: ...

    @property
    def serving(self) -> Serving: ...

    def models(self) -> list[StoredModel]: ...

    def find(self, ref: str) -> StoredModel: ...

    async def accelerators(self) -> list[Accelerator]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done, for who watches."""

    model: str
    device: str
    precision: str
    doing: str


Tell = Callable[[Step | Cell], None]


async def report(
    here: Here,
    *,
    refs: Sequence[str] = (),
    devices: Sequence[str] = (),
    precisions: Sequence[str] = (),
    tell: Tell = lambda _: None,
) -> Report:
    """The whole table. refs: none are all stored models. devices: none are ALWAYS and whatever else is found.
    precisions: none is f32. tell: gets each cell as it is done.

    A model that fails is a cell with its reason; raises NotFound for a reference that is not stored, and
    DeviceUnavailable for what no runtime calls a device.
    """
    devices = list(dict.fromkeys(canonical(device) for device in devices))
    subjects = [_subject(here, ref) for ref in refs] or [_stored(model) for model in here.models()]
    found = await here.accelerators()
    if not devices:
        devices = list(dict.fromkeys((*ALWAYS, *(a.device for a in found if a.available))))
    wanted = [(device, precision) for device in devices for precision in precisions or ("f32",)]
    cells: list[Cell] = []

    def keep(news: Step | Cell) -> None:
        tell(news)
        if isinstance(news, Cell):
            cells.append(news)

    for subject in subjects:
        await _row(here, subject, wanted, keep)
    log.info("report.done models=%d cells=%d", len(subjects), len(cells))
    return Report(_machine(found), tuple(cells))


@dataclass(frozen=True, slots=True)
class _Subject:
    """ref: what `Serving.load` takes. mock: there is nothing to measure."""

    ref: str
    model: str
    mock: bool = False


def _subject(here: Here, ref: str) -> _Subject:
    if isinstance(parse_reference(ref), MockRef):
        return _Subject(ref, ref, mock=True)
    return _stored(here.find(ref))


def _stored(model: StoredModel) -> _Subject:
    return _Subject(str(model.root), model.names[0] if model.names else str(model.root))


async def _row(here: Here, subject: _Subject, wanted: Sequence[tuple[str, str]], keep: Tell) -> None:
    """The cells of one model, kept one by one."""
    if subject.mock:
        for device, precision in wanted:
            keep(_refused(subject, device, precision, "MOCK", "a mock computes nothing; it is never measured"))
        return
    measured = (REFERENCE_DEVICE, REFERENCE_PRECISION) in wanted
    workload, own = await _reference(here, subject, keep, measured=measured)
    if measured:
        keep(own)
    for device, precision in wanted:
        if (device, precision) == (REFERENCE_DEVICE, REFERENCE_PRECISION):
            continue
        if workload is None:
            keep(await _without_reference(here, subject, device, precision, own.reason))
        else:
            keep(await _cell(here, subject, device, precision, workload, keep))


async def _reference(here: Here, subject: _Subject, tell: Tell, *, measured: bool) -> tuple[Workload | None, Cell]:
    """The workload, None where the reference itself fails; and the reference's own cell."""
    device, precision = REFERENCE_DEVICE, REFERENCE_PRECISION
    workload: Workload | None = None
    try:
        async with _loaded(here, subject, device, precision, tell) as model:
            tell(Step(subject.model, device, precision, "answering as the reference"))
            workload = await reference(here.registry, model)
            if measured:
                # generating again would only say that the same program does the same
                return workload, await _trial(here, subject, model, replace(workload, generated=None), tell)
    except NodeError as exc:
        return workload, _failed(subject, device, precision, exc, workload)
    return workload, _refused(subject, device, precision, "ERROR", "not measured", task=workload.task)


async def _cell(here: Here, subject: _Subject, device: str, precision: str, workload: Workload, tell: Tell) -> Cell:
    try:
        async with _loaded(here, subject, device, precision, tell) as model:
            return await _trial(here, subject, model, workload, tell)
    except NodeError as exc:
        return _failed(subject, device, precision, exc, workload)


async def _without_reference(here: Here, subject: _Subject, device: str, precision: str, lack: str) -> Cell:
    """Whatever a device gives, nothing says that it is right: that is no REAL cell."""
    try:
        check_available(device, await here.accelerators())
    except DeviceUnavailable as exc:
        return _failed(subject, device, precision, exc, None)
    reason = f"nothing to compare it with: torch on the CPU in f32 failed: {lack}"
    return _refused(subject, device, precision, "ERROR", reason)


@asynccontextmanager
async def _loaded(here: Here, subject: _Subject, device: str, precision: str, tell: Tell) -> AsyncIterator[LoadedModel]:
    """The model on that device and in that precision, read back; afterwards it is as loaded as it was before."""
    tell(Step(subject.model, device, precision, "loading"))
    if here.registry.find_like(subject.ref, task=None, device=device, precision=precision) is not None:
        model = await here.serving.load(subject.ref, device=device, precision=precision)
        _check(model, subject, device, precision)
        yield replace(model, notes=(*model.notes, "was loaded before"))
        return
    alias = f"report-{secrets.token_hex(6)}"
    try:
        model = await here.serving.load(subject.ref, device=device, precision=precision, alias=alias)
        if kind_of(device) == "openvino":
            first_s = model.load_s
            await here.serving.unload(alias)
            model = await here.serving.load(subject.ref, device=device, precision=precision, alias=alias)
            model = _as_later_starts(model, first_s)
        _check(model, subject, device, precision)
        yield model
    finally:
        if here.registry.find(alias) is not None:
            await here.serving.unload(alias)


def _as_later_starts(model: LoadedModel, first_s: float) -> LoadedModel:
    """The first load on OpenVINO may have converted the model; the second is what every later one takes."""
    if first_s < 2 * model.load_s:
        return model
    return replace(model, notes=(*model.notes, f"converted before its first load, which took {first_s:.1f} s"))


def _check(model: LoadedModel, subject: _Subject, device: str, precision: str) -> None:
    if model.implementation != "REAL":
        raise InferenceFailed(f"a mock took the place of {subject.model}", code="mock_loaded")
    if (model.root, model.device, model.precision) != (subject.ref, device, precision):
        raise InferenceFailed(
            f"asked for {device} in {precision}, but {model.device} in {model.precision} was read back",
            code="device_differs",
        )


async def _trial(here: Here, subject: _Subject, model: LoadedModel, workload: Workload, tell: Tell) -> Cell:
    tell(Step(subject.model, model.device, model.precision, "comparing"))
    found = await agreement(here.registry, model, workload)
    tell(Step(subject.model, model.device, model.precision, "measuring"))
    timed = await speed(here.registry, model, workload.items)
    now = here.registry.find_like(model.root, task=model.task, device=model.device, precision=model.precision) or model
    refusal = verdict(found, model.precision)
    return Cell(
        model=subject.model,
        root=model.root,
        task=model.task,
        device=model.device,
        engine=model.engine,
        precision=model.precision,
        status="ERROR" if refusal else "REAL",
        reason=refusal,
        agreement=found.minimum,
        p50_ms=round(timed.p50_ms, 3),
        p95_ms=round(timed.p95_ms, 3),
        throughput=round(timed.throughput, 3),
        unit=timed.unit,
        memory_bytes=now.device_bytes or peak_bytes(now.pid) or now.memory_bytes,
        load_s=round(model.load_s, 3),
        greedy=found.greedy,
        notes=_notes(model, found, len(workload.items)),
    )


def _notes(model: LoadedModel, found: Agreement, inputs: int) -> tuple[str, ...]:
    notes = [f"compared over {inputs} inputs", *model.notes]
    if (model.device, model.precision) == (REFERENCE_DEVICE, REFERENCE_PRECISION):
        notes.insert(0, "the reference itself")
    if found.greedy is not None:
        notes.append(f"greedy tokens as the reference's in {found.greedy.same} of {found.greedy.of}")
    if model.precision == "int8":
        notes.append(f"mean cosine {found.mean:.6f}")
        if found.moved is not None:
            notes.append(f"nearest neighbour changed for {found.moved} inputs")
    return tuple(notes)


def _failed(subject: _Subject, device: str, precision: str, error: NodeError, workload: Workload | None) -> Cell:
    status: Status = (
        "UNAVAILABLE" if isinstance(error, DeviceUnavailable) or _not_offered(error, precision) else "ERROR"
    )
    if error.code == "mock_loaded":
        status = "MOCK"
    log.info("report.cell root=%s device=%s status=%s reason=%s", subject.ref, device, status, error)
    return _refused(subject, device, precision, status, str(error), task=workload.task if workload else "")


def _not_offered(error: NodeError, precision: str) -> bool:
    """The engine has no such precision, on this device or for this task: nothing went wrong."""
    return error.detail.get("param") == "precision" or (precision == "int8" and error.code == "task_unsupported")


def _refused(subject: _Subject, device: str, precision: str, status: Status, reason: str, *, task: str = "") -> Cell:
    return Cell(
        model=subject.model,
        root=subject.ref,
        task=subject.ref.partition(":")[2] if subject.mock else task,
        device=device,
        engine="mock" if status == "MOCK" else kind_of(device),
        precision=precision,
        status=status,
        reason=" ".join(reason.split()),
    )


def _machine(found: Sequence[Accelerator]) -> dict[str, object]:
    return {
        **machine(),
        "node": __version__,
        "load_average": round(os.getloadavg()[0], 2),
        "devices": [
            {
                "device": a.device,
                "name": a.name,
                "runtime": a.runtime,
                "available": a.available,
                "reason": a.reason,
                "total_bytes": a.total_bytes,
                "versions": dict(a.versions),
            }
            for a in found
        ],
    }
