"""What `GET /api/results` answers, made of signed test records by the code that ranks them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from ipfs_accelerate_node.api.wire import json_bytes
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.ranking import ranked
from tests.support.results import MODEL, claim, key

NOW = 1_800_000_000
CPU = "A Processor"
ENCODE = (("encode-1x16", 1, 16), ("encode-1x128", 1, 128), ("encode-8x128", 8, 128), ("encode-32x128", 32, 128))


def measured(
    by: int, ms: float, *, workload: str = "encode-8x128", batch: int = 8, length: int = 128, seq: int = 1,
    spread: float = 0.1, cpu: str = CPU, cores: int = 8, settings: dict[str, int] | None = None, **changes: Any,
) -> Claim:  # fmt: skip
    """spread: of the samples, as a share of their median."""
    ns = round(ms * 1e6)
    samples = [round(ns * (1 + spread * step)) for step in (-1, -0.5, 0, 0.5, 1)]
    fixed = settings if settings is not None else {"batch": batch, "length": length, "tokens": batch * length}
    made: dict[str, Any] = {
        "workload": {"name": workload, "repeats": 5, "warmup": 1, "seed": 1, **fixed},
        "samples_ns": samples,
        "work": [batch * length] * 5,
        "machine": {"cpu": cpu, "cores": cores, "memory_bytes": 1 << 34, "system": "Linux", "arch": "x86_64"},
        "device_name": cpu,
    }
    return claim(key(by), created=NOW, seq=seq, **{**made, **changes})


def usual(by: int, factor: float, **changes: Any) -> list[Claim]:
    """Several batches and lengths, on a machine so many times slower."""
    return [
        measured(by, factor * batch * length / 1000, workload=name, batch=batch, length=length, seq=seq, **changes)
        for seq, (name, batch, length) in enumerate(ENCODE, 1)
    ]


def found(claims: Sequence[Claim], own: Sequence[Claim] = (), *, trusted: Collection[str] = ()) -> dict[str, Any]:
    """The answer, as it comes out of JSON."""
    answer = {
        "model": str(MODEL),
        "results": ranked(claims, own, trusted=trusted),
        "claims": len(claims),
        "keys": len({one.key for one in claims}),
        "flagged": [],
        "inquiry": None,
    }
    made: dict[str, Any] = json.loads(json_bytes(answer))
    return made
