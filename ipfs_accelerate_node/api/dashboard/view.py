"""What the page shows, gathered from the node: each part bounded, whatever there is of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.api.dashboard.words import size
from ipfs_accelerate_node.api.limiter import Giving
from ipfs_accelerate_node.benchmarks.cells import Cell, Report, matrix
from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.inference.model import Accelerator, LoadedModel
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.store.types import StoredModel

FIRST = 12  # rows that are open at once; the others are folded away
MAX_MODELS = 300
MAX_JOBS = 120
MAX_PEERS = 200
MAX_REPORTED = 200  # models of the report
_KINDS = {"kubo": "Kubo", "peer": "other nodes", "gateway": "gateways", "hub": "the Hub", "local": "this disk"}


@dataclass(frozen=True, slots=True)
class NodeView:
    """health: as `/readyz`. free_bytes: of the disk. fetched, given: (kind, bytes), the most first."""

    health: dict[str, object]
    peer_id: str
    started_at: float
    models: int
    loaded: int
    under_way: int
    used_bytes: int
    quota_bytes: int | None
    free_bytes: int
    kubo: str
    kubo_mode: str
    kubo_reason: str
    kubo_version: str
    door: str
    door_reason: str
    fetched: tuple[tuple[str, int], ...]
    given: tuple[tuple[str, int], ...]
    transfers: int
    refused: int
    index: str

    @property
    def most_bytes(self) -> int:
        """What the store may take: its quota, else what the disk still has beside it."""
        return self.quota_bytes or self.used_bytes + self.free_bytes


@dataclass(frozen=True, slots=True)
class ModelRow:
    """stored: None for a mock, and for what is on its way. loads: every form in which it is in memory."""

    root: str
    name: str
    stored: StoredModel | None
    loads: tuple[LoadedModel, ...]

    @property
    def origin(self) -> str:
        if self.stored is None:
            return "a mock" if self.loads and self.loads[0].implementation == "MOCK" else ""
        came = self.stored.provenance
        if came.hub_repo:
            return f"hf:{came.hub_repo}" + (f"@{came.hub_commit[:7]}" if came.hub_commit else "")
        return {"local": "added here", "cid": "pinned by CID"}.get(came.kind, came.reference)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """how: who named it. reached: the version that answers through a tunnel now, else empty."""

    peer: str
    how: str
    trusted: bool
    reached: str
    in_use: int


@dataclass(frozen=True, slots=True)
class PeersView:
    rows: tuple[PeerRow, ...]
    left_out: int
    door: str
    door_reason: str
    dial: str
    index: str
    index_at: float | None


@dataclass(frozen=True, slots=True)
class ReportView:
    """at: when it was made. cells: of (model, device)."""

    at: float
    models: tuple[str, ...]
    left_out: int
    devices: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    counts: tuple[tuple[str, int], ...]
    machine: str


@dataclass(frozen=True, slots=True)
class DevicesView:
    """found: None while the runtimes are still being asked. choices: models that were put somewhere by choice."""

    found: tuple[Accelerator, ...] | None
    note: str
    choices: tuple[LoadedModel, ...]


def node_view(here: Node, models: Sequence[StoredModel], givings: Iterable[Giving], *, draining: bool) -> NodeView:
    """Blocks for the disk."""
    health = here.health()
    if draining:
        health["state"] = "stopping"
    fetched: Counter[str] = Counter()
    for model in models:
        for share in model.provenance.sources:
            fetched[_KINDS.get(share.kind, share.kind)] += share.bytes
    distinct = list({id(giving): giving for giving in givings}.values())
    given = sum((giving.given_bytes for giving in distinct), Counter[str]())
    kubo, door, standing = here.kubo, here.peers.door.standing, here.exchange.publisher.standing()
    return NodeView(
        health=health,
        peer_id=here.key.peer_id,
        started_at=here.started_at,
        models=len(models),
        loaded=len(here.registry.loaded()),
        under_way=len([job for job in here.pin_jobs() if not job.ended]),
        used_bytes=here.store.used_bytes(),
        quota_bytes=here.store.quota_bytes,
        free_bytes=shutil.disk_usage(here.config.cache).free,
        kubo=kubo.state,
        kubo_mode=kubo.mode,
        kubo_reason=kubo.reason or "",
        kubo_version=kubo.client.version if kubo.state == "ready" else "",
        door=door.state,
        door_reason=door.reason or "",
        fetched=tuple(fetched.most_common()),
        given=tuple(given.most_common()),
        transfers=sum(giving.active for giving in distinct),
        refused=sum(giving.refused for giving in distinct),
        index="" if standing is None else standing.name,
    )


def model_rows(models: Sequence[StoredModel], loaded: Sequence[LoadedModel]) -> tuple[list[ModelRow], int]:
    """(rows, how many were left out): what is in memory first, then what is pinned, then what was used last."""
    by_root: dict[str, list[LoadedModel]] = {}
    for one in loaded:
        by_root.setdefault(one.root, []).append(one)
    stored = {str(model.root): model for model in models}
    rows = [ModelRow(root, _name(model), model, tuple(by_root.get(root, ()))) for root, model in stored.items()]
    for root, loads in by_root.items():
        if root not in stored:
            rows.append(ModelRow(root, loads[0].names[0] if loads[0].names else root, None, tuple(loads)))
    rows.sort(key=_rank)
    return rows[:MAX_MODELS], max(0, len(rows) - MAX_MODELS)


def _rank(row: ModelRow) -> tuple[bool, bool, int]:
    return (
        not row.loads,
        not (row.stored and row.stored.pinned),
        -(row.stored.last_used if row.stored else 0),
    )


def _name(model: StoredModel) -> str:
    return model.names[0] if model.names else ""


def pin_rows(jobs: Sequence[PinJob]) -> list[PinJob]:
    """What is under way, the oldest first; then what ended, the last first."""
    going = [job for job in jobs if not job.ended]
    return (going + [job for job in reversed(jobs) if job.ended])[:MAX_JOBS]


def peers_view(here: Node) -> PeersView:
    book, door = here.exchange.book, here.peers.door.standing
    tunnels = {tunnel.peer_id: tunnel for tunnel in here.peers.tunnels.now()}
    rows: list[PeerRow] = []
    added, configured = set(book.added), {peer_id(peer) or peer for peer in here.config.peers}
    for peer in dict.fromkeys((*book.all(), *sorted(book.trusted), *tunnels)):
        where = peer_id(peer) or peer
        how = "configured" if where in configured else "added" if where in added else "met on the network"
        tunnel = tunnels.get(where)
        version = f"version {tunnel.who.version}" if tunnel else ""
        rows.append(PeerRow(peer, how, where in book.trusted, version, tunnel.users if tunnel else 0))
    rows.sort(key=lambda row: (not row.reached, not row.trusted))
    publisher = here.exchange.publisher
    standing = publisher.standing()
    index = publisher.reason or "" if standing is None else f"{standing.entries} records under its name"
    return PeersView(
        rows=tuple(rows[:MAX_PEERS]),
        left_out=max(0, len(rows) - MAX_PEERS),
        door=door.state,
        door_reason=door.reason or "",
        dial=here.kubo.client.peer_id if here.kubo.state == "ready" else "",
        index=index,
        index_at=None if standing is None else standing.created,
    )


def report_view(report: Report, at: float) -> ReportView:
    models, devices, cells = matrix(report.cells)
    machine = report.machine
    memory = machine.get("memory_bytes")
    parts = [machine.get("cpu"), f"{size(memory)} memory" if isinstance(memory, int) else None]
    counts = Counter(cell.status for cell in cells.values())
    return ReportView(
        at=at,
        models=tuple(models[:MAX_REPORTED]),
        left_out=max(0, len(models) - MAX_REPORTED),
        devices=tuple(devices[:12]),
        cells=cells,
        counts=tuple((status, counts[status]) for status in ("REAL", "MOCK", "ERROR", "UNAVAILABLE") if counts[status]),
        machine=", ".join(str(part) for part in parts if part),
    )
