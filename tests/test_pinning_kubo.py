"""Kubo's own `ipfs pin remote` against this node's pinning service, over a kill of the node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]
NOWHERE = {"IPFS_ACCELERATE_NODE_HF_UPSTREAM": "http://127.0.0.1:9"}
NOBODY_HAS = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
ALL = "--status=queued,pinning,pinned,failed"


def node(cache: Path) -> NodeProcess:
    return NodeProcess(cache, "--kubo", "managed", env=NOWHERE)


def test_kubo_pins_here_lists_and_removes(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    (folder := tmp_path / "plain" / "deep").mkdir(parents=True)
    (folder / "notes.txt").write_text("no model at all")
    (folder.parent / "large").write_bytes(bytes(range(256)) * 12_000)
    with KuboDaemon(tmp_path / "repo") as kubo:
        root = kubo.cli("add", "-r", "-Q", "--cid-version=1", folder.parent)
        with node(cache) as running:
            running.wait_for_kubo()
            key = running.json("keys", "add", "--scope", "pin")["key"]
            kubo.cli("pin", "remote", "service", "add", "ours", f"{running.url}/api/v1", key)
            kubo.cli("pin", "remote", "service", "add", "wrong", f"{running.url}/api/v1", "no-key")
            assert "ours" in kubo.cli("pin", "remote", "service", "ls")
            with pytest.raises(subprocess.CalledProcessError) as refused:
                kubo.cli("pin", "remote", "ls", "--service=wrong")
            assert "401" in refused.value.stderr
            assert "Status: pinned" in kubo.cli("pin", "remote", "add", "--service=ours", "--name=plain", root)
            stored = Path(running.json("info", root)["model"]["path"])
            assert (stored / "deep" / "notes.txt").read_text() == "no model at all"
            waiting = running.request("POST", "/api/v1/pins", {"cid": NOBODY_HAS})
            assert waiting["delegates"][0].startswith("/ip4/127.0.0.1/")
            running.kill()
        with node(cache) as running:
            running.wait_for_kubo()
            kubo.cli("pin", "remote", "service", "rm", "ours")
            kubo.cli("pin", "remote", "service", "add", "ours", f"{running.url}/api/v1", key)
            assert kubo.cli("pin", "remote", "ls", "--service=ours", ALL).split("\t") == [root, "pinned", "plain"]
            resumed = running.request("GET", f"/api/v1/pins/{waiting['requestid']}")
            assert resumed["status"] in ("queued", "pinning")
            kubo.cli("pin", "remote", "rm", "--service=ours", f"--cid={root}")
            assert kubo.cli("pin", "remote", "ls", "--service=ours", ALL) == ""
            assert not running.json("info", root)["model"]["pinned"]
