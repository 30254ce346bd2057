"""A model that answers at once, for what measures models, and limits that a busy test machine keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ipfs_accelerate_node.benchmarks import Limits
from ipfs_accelerate_node.benchmarks.machine_state import MachineState
from ipfs_accelerate_node.benchmarks.measure import Measured
from ipfs_accelerate_node.benchmarks.record import Circumstances, benchmark_record
from ipfs_accelerate_node.benchmarks.workload import Workload
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.inference.model import Inferred, Item, LoadedModel, Options, Text, Vector
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store.types import Provenance, StoredModel

NO_LIMITS = Limits(spread=1e9, others=1e9, load=1e9)
KEY = NodeKey(bytes(range(32)))
ROOT = Cid.of(b"a model's root", DAG_PB)
DEFAULTS = Options()
SMALL = Workload("encode-2x6", "encode", batch=2, length=6, warmup=1, repeats=3, seed=7)
MODEL = LoadedModel(
    id="minilm",
    root=str(ROOT),
    names=("minilm",),
    device="cpu",
    engine="torch",
    precision="f32",
    implementation="REAL",
    source="local",
    task="embedding",
    width=4,
    max_tokens=256,
    state="ready",
    load_s=1.25,
    pid=None,
    versions={"torch": "2.15.0"},
    memory_bytes=123_456_789,
)
STORED = StoredModel(
    root=ROOT,
    path=Path("/somewhere/models/x"),
    size_bytes=1,
    file_count=1,
    names=("minilm",),
    pinned=True,
    public=True,
    provenance=Provenance("hf", "hf:org/name", "2026-01-01T00:00:00+00:00", hub_repo="org/name", hub_commit="0" * 40),
    last_used=1,
)
CALM = MachineState(cores=4, load_before=0.5, load_during=1.25, others=0.25, governors=("performance",), throttled=0)
MEASURED = Measured(
    samples_ns=(3_000_000, 1_000_000, 2_500_000),
    work=(12, 12, 12),
    unit="tokens",
    state=CALM,
    model=MODEL,
    tokens=12,
    peak_bytes=400_000_000,
)


def record_of(
    measured: Measured = MEASURED, *, seq: int = 1, created: int = 1_800_000_000, **more: Any
) -> dict[str, Value]:
    """A record as a node makes it. more: of Circumstances."""
    around = Circumstances(**{"stored": STORED, "threads": 4, "device_name": "A CPU", **more})
    return benchmark_record(SMALL, measured, around, created=created, seq=seq)


@dataclass
class Door:
    """Answers a batch as MODEL does, or as the change to its answers says."""

    change: Callable[[Inferred], Inferred] = lambda reply: reply
    batches: list[list[Item]] = field(default_factory=list)

    async def infer(
        self,
        ref: str,
        items: Sequence[Item],
        options: Options = DEFAULTS,
        *,
        task: str | None = None,
        device: str = "auto",
        precision: str | None = None,
    ) -> Inferred:
        self.batches.append([*items])
        outputs = tuple(Vector(np.ones(4, np.float32), tokens_in=6) for _ in items)
        return self.change(Inferred(outputs, MODEL, tokens=6 * len(items), seconds=0.001))


async def examples(count: int) -> list[Item]:
    return [Text(f"text {number}") for number in range(count)]
