"""The benchmark record: what ran where and how long it took, without a word about who or in which directory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.benchmarks.machine_state import MachineState
from ipfs_accelerate_node.benchmarks.measure import Measured
from ipfs_accelerate_node.benchmarks.schema import SCHEMA, SCHEMA_VERSION, clean
from ipfs_accelerate_node.benchmarks.trial import Agreement
from ipfs_accelerate_node.benchmarks.workload import Workload
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import LIFETIME_S
from ipfs_accelerate_node.store.types import SourceShare, StoredModel


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known beside the measurement. stored: names the Hub's repository where the model came from, if that is
    public. threads: of the CPU that a worker may use. agreement: with torch on the CPU in f32, None where that was not
    compared. busy: kept although the machine was too busy; such a record is never published. sources: of a fetch."""

    stored: StoredModel | None
    threads: int
    device_name: str = ""
    agreement: Agreement | None = None
    busy: bool = False
    sources: tuple[SourceShare, ...] = ()


def benchmark_record(
    workload: Workload, measured: Measured, around: Circumstances, *, created: int, seq: int
) -> dict[str, Value]:
    """The record to sign: integers and text (and the root as a link), as canonical dag-cbor takes them.

    created: seconds since 1970.
    """
    model = measured.model
    record: dict[str, Value] = {
        "schema": SCHEMA,
        "v": SCHEMA_VERSION,
        "created": created,
        "expires": created + LIFETIME_S,
        "seq": seq,
        "status": model.implementation,
        "model": Cid.parse(model.root).canonical,
        "task": model.task,
        "engine": model.engine if workload.kind != "fetch" else "fetch",
        "precision": model.precision,
        "device": clean(model.device),
        "device_name": clean(around.device_name),
        "versions": {"node": __version__, **{clean(k): clean(v) for k, v in model.versions.items()}},
        "machine": {**machine(), "threads": around.threads},
        "workload": _workload(workload, measured),
        "unit": measured.unit,
        "work": list(measured.work),
        "samples_ns": list(measured.samples_ns),
        "phases_ns": {name: list(values) for name, values in measured.phases_ns.items()},
        "state": _state(measured.state, busy=around.busy),
    }
    return record | _known(measured, around)


def machine() -> dict[str, Value]:
    """What its speed depends on; no name, user, path or address of it."""
    return {
        "cpu": clean(_cpu_name()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.system(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def _known(measured: Measured, around: Circumstances) -> dict[str, Value]:
    """What not every measurement has."""
    model, stored = measured.model, around.stored
    said: dict[str, Value] = {}
    if model.load_s:
        said["load_ms"] = round(model.load_s * 1000)
    if measured.peak_bytes:
        said["memory_peak_bytes"] = measured.peak_bytes
    if model.device_bytes:
        said["device_memory_bytes"] = model.device_bytes
    if around.agreement is not None:
        said["agreement"] = _agreement(around.agreement)
    if around.sources:
        said["sources"] = [_source(share) for share in around.sources]
    if stored is not None and stored.public and stored.provenance.hub_repo and stored.provenance.hub_commit:
        said["hub"] = {"repo": clean(stored.provenance.hub_repo), "commit": stored.provenance.hub_commit}
    return said


def _workload(workload: Workload, measured: Measured) -> dict[str, Value]:
    """tokens: real ones that went in, of one repeat."""
    return {
        "name": workload.name,
        **workload.parameters,
        **measured.further,
        "repeats": len(measured.samples_ns),
        "tokens": measured.tokens,
        "truncated": measured.truncated,
    }


def _state(state: MachineState, *, busy: bool) -> dict[str, Value]:
    """Averages and cores in thousandths, energy of all repeats together; what could not be read is left out."""
    said: dict[str, Value] = {
        "busy": busy,
        "cores": state.cores,
        "load_before_milli": round(state.load_before * 1000),
        "load_during_milli": round(state.load_during * 1000),
        "governors": [clean(name) for name in state.governors],
        "slowed": list(state.slowed),
        "disturbed": state.disturbed,
    }
    if state.others is not None:
        said["others_milli"] = round(state.others * 1000)
    if state.throttled is not None:
        said["throttled"] = state.throttled
    if state.energy_mj is not None:
        said["energy_mj"] = state.energy_mj
        said["energy_by"] = state.energy_by
    return said


def _agreement(found: Agreement) -> dict[str, Value]:
    """Cosines in millionths, rounded down: what is not exactly 1 never reads as 1."""
    said: dict[str, Value] = {"min_ppm": int(found.minimum * 1e6 // 1), "mean_ppm": int(found.mean * 1e6 // 1)}
    if found.moved is not None:
        said["moved"] = found.moved
    if found.greedy is not None:
        said["greedy_same"], said["greedy_of"] = found.greedy.same, found.greedy.of
    return said


def _source(share: SourceShare) -> dict[str, Value]:
    """Of which kind it was and what it gave; not which one it was."""
    return {
        "kind": share.kind,
        "bytes": share.bytes,
        "requests": share.requests,
        "rejected": share.rejected,
        "ms": round(share.seconds * 1000),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "unknown"


def json_value(value: Value) -> object:
    """A record's value for JSON: links as CID strings, bytes as hex."""
    match value:
        case Cid():
            return str(value)
        case bytes():
            return value.hex()
        case list():
            return [json_value(item) for item in value]
        case dict():
            return {key: json_value(item) for key, item in value.items()}
        case _:
            return value
