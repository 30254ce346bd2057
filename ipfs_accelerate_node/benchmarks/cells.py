"""The report's table as data: one cell per model and device, what it says, and how two machines' tables are put side
by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from ipfs_accelerate_node.errors import InvalidInput

Status = Literal["REAL", "MOCK", "ERROR", "UNAVAILABLE"]
MAX_REPORT_BYTES = 16 << 20
_RANK: dict[Status, int] = {"REAL": 0, "ERROR": 1, "MOCK": 2, "UNAVAILABLE": 3}

Number = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]


class Same(msgspec.Struct, frozen=True):
    """Of ``of`` greedy generations, ``same`` have exactly the reference's tokens."""

    same: int
    of: int


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What one model does on one device.

    model: its name here, else its root. device, engine, precision: as read back; as asked for where nothing was loaded.
    reason: why it is not REAL, empty where it is. agreement: the smallest cosine between the task's primary outputs
    here and on the reference (torch, CPU, f32) over the workload. p50_ms, p95_ms: of requests with one input.
    throughput: of requests with a batch; unit: what it counts, with ``/s``. memory_bytes: of a device's own memory,
    else the worker's peak resident size. load_s: from the call to the first output.
    """

    model: str
    root: str
    task: str
    device: str
    engine: str
    precision: str
    status: Status
    reason: str = ""
    agreement: Number | None = None
    p50_ms: Number | None = None
    p95_ms: Number | None = None
    throughput: Number | None = None
    unit: str = ""
    memory_bytes: int | None = None
    load_s: Number | None = None
    greedy: Same | None = None
    notes: tuple[str, ...] = ()


class ClaimedCell(msgspec.Struct, frozen=True, kw_only=True):
    """What a key claims that one model does on another machine. No `Cell`, so that nothing counts it as one: whether it
    is REAL nobody here knows.

    device_name, cpu: of that machine. signer: PeerID. unlike: how far it is from what this machine measured
    (`peers.likeness`). p50_ms: a median, of the workload ``by``. throughput: of ``throughput_by``. created: when it was
    measured, in seconds since 1970.
    """

    model: str
    root: str
    task: str
    device: str
    device_name: str
    cpu: str
    engine: str
    precision: str
    signer: str
    trusted: bool = False
    unlike: Literal["", "faster", "slower"] = ""
    p50_ms: Number | None = None
    by: str = ""
    throughput: Number | None = None
    throughput_by: str = ""
    unit: str = ""
    load_s: Number | None = None
    created: int = 0


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """machine: what the speeds depend on, and the devices that were found; nothing of who or where it is. cells: what
    ran here. claims: what others say of the same models, where they were asked; not_asked: models that are private
    here."""

    machine: dict[str, Any]
    cells: tuple[Cell, ...]
    claims: tuple[ClaimedCell, ...] = ()
    not_asked: tuple[str, ...] = ()


class SideCell(Cell, frozen=True, kw_only=True):
    """machine: index of the machine that it is from."""

    machine: int


class Difference(msgspec.Struct, frozen=True):
    """Cells of one model that are not to be compared just so: under its name the machines have several roots, or they
    ran it in several precisions. values: of each machine in their order, empty where it has not the model."""

    model: str
    what: Literal["root", "precision"]
    values: tuple[tuple[str, ...], ...]


class Comparison(msgspec.Struct, frozen=True):
    """cells: those of one model, device and precision next to each other, the better status first."""

    machines: tuple[dict[str, Any], ...]
    cells: tuple[SideCell, ...]
    differences: tuple[Difference, ...] = ()


def read_report(data: bytes, *, name: str) -> Report:
    """What ``report --json`` wrote, here or elsewhere. Raises InvalidInput; name: what to call the file."""
    if len(data) > MAX_REPORT_BYTES:
        raise InvalidInput(f"{name} is too large for a report ({len(data)} bytes)", param="compare")
    try:
        return msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{name} is not what `report --json` writes: {exc}", param="compare") from exc


def compare(reports: Sequence[Report]) -> Comparison:
    """All cells of all machines; order: models as they come, then devices, then by status. Claims are no cells of any
    machine here, and stay out."""
    models: dict[str, int] = {}
    devices: dict[str, int] = {}
    cells: list[SideCell] = []
    for index, report in enumerate(reports):
        for cell in report.cells:
            models.setdefault(cell.model, len(models))
            devices.setdefault(cell.device, len(devices))
            cells.append(SideCell(**msgspec.structs.asdict(cell), machine=index))
    cells.sort(key=lambda c: (models[c.model], devices[c.device], c.precision, _RANK[c.status], c.machine))
    differences = (*_differences(reports, "root"), *_differences(reports, "precision"))
    return Comparison(tuple(report.machine for report in reports), tuple(cells), differences)


def _differences(reports: Sequence[Report], what: Literal["root", "precision"]) -> list[Difference]:
    """Models that not every machine that has them has with the same values. What could not run says nothing of the
    precision that it would have run in."""
    found: list[Difference] = []
    counts = [report.cells if what == "root" else [c for c in report.cells if c.status == "REAL"] for report in reports]
    for model in dict.fromkeys(cell.model for report in reports for cell in report.cells):
        values = tuple(tuple(sorted({getattr(c, what) for c in cells if c.model == model})) for cells in counts)
        if len({of_machine for of_machine in values if of_machine}) > 1:
            found.append(Difference(model, what, values))
    return found


def matrix(cells: Sequence[Cell]) -> tuple[list[str], list[str], dict[tuple[str, str], Cell]]:
    """(models, devices, the best cell of each pair): REAL before all else, then the better latency."""
    best: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        here = (cell.model, cell.device)
        if here not in best or _better(cell, best[here]):
            best[here] = cell
    models = list(dict.fromkeys(cell.model for cell in cells))
    devices = list(dict.fromkeys(cell.device for cell in cells))
    return models, devices, best


def _better(one: Cell, other: Cell) -> bool:
    def rank(cell: Cell) -> tuple[int, float]:
        return _RANK[cell.status], cell.p50_ms if cell.p50_ms is not None else float("inf")

    return rank(one) < rank(other)
