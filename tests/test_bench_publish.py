"""One signed record from measuring to IPFS: Kubo's CID is ours, a second implementation verifies, one bit breaks it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.sample import SAMPLE

pytestmark = [pytest.mark.kubo, pytest.mark.model, pytest.mark.timeout(180)]

PREFIX = b"ipfs-accel-bench-v1:"


def dag_json_bytes(value: dict[str, Any]) -> bytes:
    """The bytes that dag-json writes as {"/": {"bytes": base64 without padding}}."""
    text = value["/"]["bytes"]
    return base64.b64decode(text + "=" * (-len(text) % 4))


def test_publish_the_sample(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with (
        KuboDaemon(tmp_path / "router") as router,
        NodeProcess(cache, "--kubo", "managed", "--bootstrap", router.addr) as node,
    ):
        node.wait_for_kubo()
        root = node.json("add", str(SAMPLE), "--announce")["root"]
        done = node.json("bench", root, "--publish", "--yes")
        assert done["published"], done["note"]

        # another daemon gets both blocks by CID, so they are on the network, not only in our folder
        envelope = json.loads(router.cli("dag", "get", done["envelope_cid"], timeout_s=30))
        assert envelope["record"]["/"] == done["record_cid"]
        record = json.loads(router.cli("dag", "get", done["record_cid"], timeout_s=30))
        assert record["model"]["/"] == root
        record_bytes = router.block(done["record_cid"])
        (copy := tmp_path / "record").write_bytes(record_bytes)
        assert router.cli("block", "put", "--cid-codec=dag-cbor", copy) == done["record_cid"]

        # the second implementation: the raw signature over prefix + bytes, with the bare public key
        public = Ed25519PublicKey.from_public_bytes(dag_json_bytes(envelope["key"])[4:])
        signature = dag_json_bytes(envelope["sig"])
        public.verify(signature, PREFIX + record_bytes)
        flipped = bytearray(record_bytes)
        flipped[len(flipped) // 2] ^= 1
        with pytest.raises(InvalidSignature):
            public.verify(signature, PREFIX + bytes(flipped))

        refused = node.cli("bench", "mock:embedding", "--publish", "--yes", check=False)
        assert refused.returncode == 2
        assert "mock" in refused.stderr
