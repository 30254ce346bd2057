"""The README's own check of a record, run as it stands there against one that was really published, and against
forgeries: with other libraries than ours, by another Kubo than the one that published it."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.records.canonical import decode, encode
from ipfs_accelerate_node.records.key import NodeKey
from tests.support.kubo import KuboDaemon, kubo_binary
from tests.support.node import NodeProcess
from tests.support.results import sealed
from tests.support.tunnels import STREAMS

README = Path(__file__).resolve().parents[1] / "README.md"

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(180)]


def program() -> str:
    (found,) = re.findall(r"```python\n(# verify\.py:.*?)```", README.read_text(), re.DOTALL)
    return str(found)


def test_it_is_a_small_program() -> None:
    assert len([line for line in program().splitlines() if line.strip()]) <= 20
    assert "ipfs_accelerate" not in program()


def test_it_verifies_what_was_published_and_nothing_else(tmp_path: Path) -> None:
    (script := tmp_path / "verify.py").write_text(program())
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    with KuboDaemon(tmp_path / "router", config=STREAMS) as router:

        def run(envelope: Cid) -> subprocess.CompletedProcess[str]:
            (tools := tmp_path / "bin").mkdir(exist_ok=True)
            if not (tools / "ipfs").exists():
                (tools / "ipfs").symlink_to(kubo_binary())
            env = {"PATH": str(tools), "IPFS_PATH": str(router.repo), "HOME": str(tmp_path)}
            return subprocess.run(
                [sys.executable, script, str(envelope)],
                env=env,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        with NodeProcess(cache, "--kubo", "managed", "--bootstrap", router.addr) as node:
            node.wait_for_kubo()
            root = node.json("add", str(model))["root"]
            own = NodeKey.load_or_create(cache / "node.key")
            made = sealed(own, created=int(time.time()), model=Cid.parse(root))
            RecordShelf(cache).keep(made)
            wish = {"record": str(made.envelope_cid), "publish": True}
            assert node.request("POST", "/api/benchmarks", wish)["published"]
            done = run(made.envelope_cid)
            assert done.returncode == 0, done.stderr
            assert done.stdout == (f"{own.public.hex()} signed: cpu embedding-b8 [1000000, 2000000, 3000000]\n")

        envelope = decode(made.envelope_bytes)
        assert isinstance(envelope, dict)
        forged = sealed(own, created=int(time.time()), model=Cid.parse(root), ns=1)
        for change in (
            {"record": forged.record_cid},
            {"key": NodeKey(bytes(32)).public},
            {"sig": bytes(64)},
        ):
            block = encode({**envelope, **change})
            for number, data in enumerate((forged.record_bytes, block)):
                (path := tmp_path / f"block{number}").write_bytes(data)
                router.cli("block", "put", "--cid-codec=dag-cbor", path)
            refused = run(Cid.of(block, DAG_CBOR))
            assert refused.returncode != 0, change
            assert "BadSignatureError" in refused.stderr, refused.stderr


def test_the_cids_of_both_blocks_are_kubos(tmp_path: Path) -> None:
    """By `block put` of the bytes, and by `dag put` of what `dag get` prints; which a person can read."""
    made = sealed(NodeKey(bytes(range(32))), created=1_800_000_000)
    with KuboDaemon(tmp_path / "repo") as kubo:
        for cid, data in ((made.record_cid, made.record_bytes), (made.envelope_cid, made.envelope_bytes)):
            (path := tmp_path / str(cid)).write_bytes(data)
            assert kubo.cli("block", "put", "--cid-codec=dag-cbor", path).strip() == str(cid)
            shown = kubo.cli("dag", "get", str(cid))
            (again := tmp_path / f"{cid}.json").write_text(shown)
            assert kubo.cli("dag", "put", "--input-codec=dag-json", "--store-codec=dag-cbor", again).strip() == str(cid)
        record = kubo.cli("dag", "get", str(made.record_cid))
        for text in ('"engine":"torch"', '"samples_ns":[1000000,2000000,3000000]', '"schema":"ipfs-accelerate-node/'):
            assert text in record
        key = base64.b64encode(NodeKey(bytes(range(32))).public).decode().rstrip("=")
        assert key in kubo.cli("dag", "get", str(made.envelope_cid))
