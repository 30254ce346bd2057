"""libp2p streams as local TCP ports, which Kubo calls p2p mounts: strangers in by `listen`, us out by `forward`.

A mount lives in the daemon's memory: it is gone when the daemon restarts, and it outlives a client that crashed.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass

from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.kubo import calls
from ipfs_accelerate_node.kubo.calls import Call
from ipfs_accelerate_node.kubo.rpc import Parameters, Rpc

_ANSWER_BYTES = 1 << 20
_TIMEOUT_S = 10.0
_LOCAL = re.compile(r"/ip4/127\.0\.0\.1/tcp/([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of `p2p ls`. Strangers in: listen is ``/p2p/<own id>``, target where they are brought. Us out: listen
    is a local address, target ``/p2p/<peer id>``."""

    protocol: str
    listen: str
    target: str

    @property
    def listen_port(self) -> int | None:
        """Of a local address, None for a mount that brings strangers in."""
        return _port(self.listen)

    @property
    def target_port(self) -> int | None:
        return _port(self.target)


class Streams:
    """Mounts of one daemon, with its `Experimental.Libp2pStreamMounting` on. Raises as `KuboClient` does; kubo_error
    also where the mounting of streams is off."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def listen(self, protocol: str, port: int) -> None:
        """Bring whoever opens a stream of that protocol to this port of 127.0.0.1. Each connection there begins with
        one line, the caller's PeerID, as libp2p authenticated it."""
        query = [("arg", protocol), ("arg", _address(port)), ("report-peer-id", "true")]
        await self._ask(calls.P2P_LISTEN, query)

    async def forward(self, protocol: str, peer_id: str) -> None:
        """Open a free port of 127.0.0.1 that leads to the peer; `mounts` says which. The peer is dialled only when
        somebody connects there."""
        await self._ask(calls.P2P_FORWARD, [("arg", protocol), ("arg", _address(0)), ("arg", f"/p2p/{peer_id}")])

    async def close(self, mount: Mount) -> int:
        """How many mounts that ended: 0 when it was gone already. Streams under way go on."""
        query = [("protocol", mount.protocol), ("listen-address", mount.listen), ("target-address", mount.target)]
        answer = await self._ask(calls.P2P_CLOSE, query)
        return int(answer) if answer.isdigit() else 0

    async def mounts(self, protocol: str) -> list[Mount]:
        answer = await self._ask(calls.P2P_LS, ())
        try:
            listed = json.loads(answer)["Listeners"] or ()
            found = [Mount(str(m["Protocol"]), str(m["ListenAddress"]), str(m["TargetAddress"])) for m in listed]
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise Unavailable("Kubo listed its mounts in a way not understood", code="kubo_error") from exc
        return [mount for mount in found if mount.protocol == protocol]

    async def _ask(self, call: Call, query: Parameters) -> bytes:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return (await self._rpc.read(call, query, limit_bytes=_ANSWER_BYTES)).strip()
        except TimeoutError as exc:
            raise Unavailable(
                f"Kubo did not answer {call.path} within {_TIMEOUT_S:g} s", code="kubo_timeout", call=call.path
            ) from exc


def _address(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}"


def _port(address: str) -> int | None:
    match = _LOCAL.fullmatch(address)
    return int(match[1]) if match else None
