"""One signed record from measuring to IPFS: Kubo's CID is ours, a second implementation verifies, one bit breaks it,
and a model whose bytes are damaged is not spoken of."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ipfs_accelerate_node.benchmarks import BenchResult, Wish
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.errors import BadContent, BadRequest
from ipfs_accelerate_node.node import Node
from tests.support.benchmarks import NO_LIMITS
from tests.support.kubo import KuboDaemon, find_kubo
from tests.support.sample import SAMPLE

pytestmark = [pytest.mark.kubo, pytest.mark.model, pytest.mark.timeout(180)]

PREFIX = b"ipfs-accel-bench-v1:"


def dag_json_bytes(value: dict[str, Any]) -> bytes:
    """The bytes that dag-json writes as {"/": {"bytes": base64 without padding}}."""
    text = value["/"]["bytes"]
    return base64.b64decode(text + "=" * (-len(text) % 4))


async def test_publish_the_sample(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with KuboDaemon(tmp_path / "router") as router:
        config = Config(
            cache=cache, port=0, kubo="managed", kubo_binary=find_kubo(), kubo_loopback=True, bootstrap=(router.addr,)
        )
        async with Node(config) as node:
            node.bench_limits = NO_LIMITS  # other tests run beside this one
            await node.kubo.wait_ready(60.0)
            root = str((await node.add(SAMPLE, announce=True)).root)
            wish = Wish(root, workloads=("encode-1x16",), quick=True)
            (done,) = (await node.bench(wish, publish=True)).results
            assert done.published, done.note
            with pytest.raises(BadRequest) as caught:
                await node.bench(Wish("mock:embedding"), publish=True)
            assert caught.value.code == "mock_not_measurable"
            await asyncio.to_thread(verify_elsewhere, router, root, done, tmp_path / "record")

            weights = node.find(root).path / "model.safetensors"
            weights.chmod(0o600)
            flip(weights)
            with pytest.raises(BadContent) as damaged:
                await node.bench(wish, publish=True)
            assert damaged.value.code == "weights_unverified"


def flip(path: Path) -> None:
    """One bit of its last byte."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def verify_elsewhere(router: KuboDaemon, root: str, done: BenchResult, copy: Path) -> None:
    """Another daemon gets both blocks by CID, so they are on the network, not only in our folder; and the second
    implementation: the raw signature over prefix + bytes, with the bare public key."""
    envelope = json.loads(router.cli("dag", "get", done.envelope_cid, timeout_s=30))
    assert envelope["record"]["/"] == done.record_cid
    record = json.loads(router.cli("dag", "get", done.record_cid, timeout_s=30))
    assert record["model"]["/"] == root
    record_bytes = router.block(done.record_cid)
    copy.write_bytes(record_bytes)
    assert router.cli("block", "put", "--cid-codec=dag-cbor", copy) == done.record_cid

    public = Ed25519PublicKey.from_public_bytes(dag_json_bytes(envelope["key"])[4:])
    signature = dag_json_bytes(envelope["sig"])
    public.verify(signature, PREFIX + record_bytes)
    flipped = bytearray(record_bytes)
    flipped[len(flipped) // 2] ^= 1
    with pytest.raises(InvalidSignature):
        public.verify(signature, PREFIX + bytes(flipped))
