"""A stranger's view of a node: a Kubo daemon of the test dials its door and asks by plain HTTP."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any

from ipfs_accelerate_node.peers.protocol import PROTOCOL
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess

STREAMS = {"Experimental.Libp2pStreamMounting": True, "Experimental.FilestoreEnabled": True}
WAIT_S = 30.0


def reply(port: int, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def mounts(daemon: KuboDaemon) -> list[dict[str, str]]:
    """Of our protocol, as this daemon lists them."""
    lines = daemon.cli("p2p", "ls", "--headers").splitlines()[1:]
    fields = [line.split() for line in lines if PROTOCOL in line]
    return [{"listen": listen, "target": target} for _, listen, target in fields]


def way_to(daemon: KuboDaemon, peer_id: str) -> int:
    """Port of 127.0.0.1 from which this daemon leads to the node's door."""
    if not any(m["target"] == f"/p2p/{peer_id}" for m in mounts(daemon)):
        daemon.cli("p2p", "forward", PROTOCOL, "/ip4/127.0.0.1/tcp/0", f"/p2p/{peer_id}")
    (mount,) = [m for m in mounts(daemon) if m["target"] == f"/p2p/{peer_id}"]
    return int(mount["listen"].rpartition("/")[2])


def await_door(port: int) -> dict[str, Any]:
    """What `/api/peer` says through the tunnel, as soon as it is answered."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            status, body = reply(port, "GET", "/api/peer")
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status == 200:
            told: dict[str, Any] = json.loads(body)
            return told
        assert time.monotonic() < deadline, (status, body)
        _brief_pause()


def await_standing(node: NodeProcess, state: str, reason: str = "") -> None:
    """Until the node itself says so of its door; reason: a part of it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        door = node.request("GET", "/api/peers")["door"]
        if door["state"] == state and reason in str(door["reason"]):
            return
        assert time.monotonic() < deadline, door
        _brief_pause()


def _brief_pause() -> None:
    """Between two tries at what comes back by itself; the loop around it has the deadline."""
    time.sleep(0.02)
