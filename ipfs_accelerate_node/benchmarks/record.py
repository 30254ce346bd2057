"""The benchmark record: what ran where and how long it took, without a word about who or in which directory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.benchmarks.workload import Measured, Workload
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import LIFETIME_S
from ipfs_accelerate_node.store.types import StoredModel

SCHEMA = "ipfs-accelerate-node/benchmark"
SCHEMA_VERSION = 1
MAX_TEXT = 200  # characters of any one text: some come from the system, and readers cap them too


def benchmark_record(
    workload: Workload, measured: Measured, stored: StoredModel | None, *, created: int, seq: int
) -> dict[str, Value]:
    """The record to sign: integers and text (and the root as a link), as canonical dag-cbor takes them.

    stored: names the Hub's repository where the model came from, if that is public. created: seconds since 1970.
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
        "engine": model.engine,
        "precision": model.precision,
        "device": _text(model.device),
        "versions": {"node": __version__, **{_text(k): _text(v) for k, v in model.versions.items()}},
        "machine": machine(),
        "workload": _workload(workload, measured),
        "samples_ns": list(measured.samples_ns),
        "memory_bytes": model.memory_bytes,
        "load_ms": round(model.load_s * 1000),
        "load_average_milli": {
            "before": round(measured.load_before * 1000),
            "during": round(measured.load_during * 1000),
        },
    }
    if stored is not None and stored.public and stored.provenance.hub_repo and stored.provenance.hub_commit:
        record["hub"] = {"repo": _text(stored.provenance.hub_repo), "commit": stored.provenance.hub_commit}
    return record


def machine() -> dict[str, Value]:
    """What its speed depends on; no name, user, path or address of it."""
    return {
        "cpu": _text(_cpu_name()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.system(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def _workload(workload: Workload, measured: Measured) -> dict[str, Value]:
    return {
        "name": workload.name,
        "batch": workload.batch,
        "words": workload.words,
        "warmup": workload.warmup,
        "repeats": workload.repeats,
        "seed": workload.seed,
        "tokens": measured.tokens,
        "truncated": measured.truncated,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "unknown"


def _text(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:MAX_TEXT]


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
