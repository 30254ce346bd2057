"""A model run on another node that is known by PeerID only, over real Kubo daemons, as a user asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.kubo import KuboDaemon
from tests.support.models import tiny_model
from tests.support.node import NodeProcess
from tests.support.tunnels import STREAMS, await_standing

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(180)]


def test_by_peer_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
    with KuboDaemon(tmp_path / "router", config=STREAMS) as router:
        managed = ("--kubo", "managed", "--bootstrap", router.addr)
        with NodeProcess(tmp_path / "a", *managed, "--serve-peers") as a, NodeProcess(tmp_path / "b", *managed) as b:
            a.wait_for_kubo()
            b.wait_for_kubo()
            await_standing(a, "open")
            a_id, b_id = (node.request("GET", "/api/peer")["peer_id"] for node in (a, b))
            root = a.json("add", str(tiny_model(tmp_path / "tiny")))["root"]

            refused = b.cli("infer", root, "the cat", "--peer", a_id, check=False)
            assert refused.returncode == 1, refused.stderr
            assert f"{b_id} may not run models here" in refused.stderr

            assert a.json("peers", "allow", b_id) == {"allowed": b_id}
            assert b_id in a.cli("peers", "ls").stderr
            done = b.cli("infer", root, "the cat", "--peer", a_id, "--device", "cpu")
            assert f"peer:{a_id} claims: REAL on cpu in f32, root {root}" in done.stderr
            (vector,) = [json.loads(line) for line in done.stdout.splitlines()]
            own = a.json("infer", root, "the cat", "--device", "cpu")
            assert own["outputs"][0]["vector"] == vector
            said = b.json("infer", root, "the cat", "the dog", "--peer", a_id)
            assert (said["peer"], said["way"], said["claim"], len(said["outputs"])) == (a_id, "tunnel", True, 2)

            gone = b.cli("infer", root, "the cat", "--device", "cuda:9", "--peer", a_id, check=False)
            assert (gone.returncode, "cuda:9" in gone.stderr) == (5, True)

            # b itself has opened nothing
            refused = a.cli("infer", root, "x", "--peer", b_id, check=False)
            assert (refused.returncode, "runs no models for others" in refused.stderr) == (3, True)
            a.cli("peers", "deny", b_id)
            assert b.cli("infer", root, "x", "--peer", a_id, check=False).returncode == 1
