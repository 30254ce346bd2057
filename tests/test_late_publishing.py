"""Publishing while Kubo is away, as a user meets it: queued and said so, also after a restart; published once Kubo is
there, and only once it was read back."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.key import NodeKey
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.results import sealed, until

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(240)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def state(node: NodeProcess) -> str:
    """Of the one record that there is."""
    (one,) = node.request("GET", "/api/benchmarks")["benchmarks"]
    return str(one["state"])


def index(node: NodeProcess) -> Any:
    return node.request("GET", "/api/peers")["index"]["standing"]


def test_queued_kept_through_a_restart_and_published_when_kubo_comes(tmp_path: Path) -> None:
    port = free_port()
    kubo = KuboDaemon(tmp_path / "kubo", config={"Addresses.API": f"/ip4/127.0.0.1/tcp/{port}"})
    kubo.stop()  # it is set up, and away
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    away = ("--kubo", f"http://127.0.0.1:{port}", "--no-tunnels")
    with NodeProcess(cache, *away) as node:
        root = node.json("add", str(model))["root"]
        made = sealed(NodeKey.load_or_create(cache / "node.key"), created=int(time.time()), model=Cid.parse(root))
        RecordShelf(cache).keep(made)
        assert state(node) == "here"
        wish = {"record": str(made.envelope_cid), "publish": True}
        done = node.request("POST", "/api/benchmarks", wish)
        assert (done["published"], done["queued"]) == (False, True)
        assert "as soon as Kubo is there" in done["note"]
        assert state(node) == "queued"
        assert "1 records of this node are queued" in node.cli("results", root, "--offline").stderr
        assert "queued" in node.cli("peers", "ls").stderr
        assert index(node) is None
    with NodeProcess(cache, *away) as node:  # started again
        assert state(node) == "queued"
        kubo.start()
        try:
            until(lambda: state(node) == "published")
            for cid in (made.record_cid, made.envelope_cid):
                assert kubo.block(str(cid))
                assert f"{cid} direct" in kubo.cli("pin", "ls", "--type=direct")
            standing = until(lambda: index(node))
            envelope = json.loads(kubo.cli("dag", "get", standing["envelope"]))
            listed = json.loads(kubo.cli("dag", "get", envelope["record"]["/"]))["own"]
            assert [link["/"] for link in listed] == [str(made.envelope_cid)]
            assert "queued" not in node.cli("results", root, "--offline").stderr
        finally:
            kubo.stop()


def test_without_any_kubo_nothing_is_promised(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    with NodeProcess(cache) as node:
        root = node.json("add", str(model))["root"]
        made = sealed(NodeKey.load_or_create(cache / "node.key"), created=int(time.time()), model=Cid.parse(root))
        RecordShelf(cache).keep(made)
        done = node.cli("bench", root, "--publish", "--yes", check=False)
        assert done.returncode == 5
        assert state(node) == "here"
