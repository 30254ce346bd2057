"""Ways out to other nodes: per peer one local port, which Kubo leads to their peers' listener.

Kubo holds the ports; they are gone when it restarts, and then opened again when somebody asks. A tunnel that nobody
uses is closed after a while, all at the end, and there are never more than `limit`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import NodeError, Overloaded, Unavailable
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.streams import Mount
from ipfs_accelerate_node.peers.protocol import PROTOCOL, Who, ask_who

log = logging.getLogger(__name__)

LIMIT = 64
IDLE_S = 300.0
REACH_S = 15.0  # to find, dial and ask a peer
CLOSE_S = 3.0


@dataclass(slots=True)
class Tunnel:
    """users: how many have it open now. last_used: `time.monotonic()`. who: as it answered when it was opened."""

    peer_id: str
    url: str
    mount: Mount
    client: KuboClient
    who: Who
    users: int = 0
    last_used: float = 0.0


class Tunnels:
    """Owned by the node: `run` closes idle ones, `aclose` all. Others `open`, or `using` while they use one."""

    def __init__(self, kubo: KuboService, *, limit: int = LIMIT, idle_s: float = IDLE_S) -> None:
        self._kubo = kubo
        self._limit = limit
        self._idle_s = idle_s
        self._open: dict[str, Tunnel] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # held by who opens
        self._making = 0
        self._mounting = asyncio.Lock()

    def now(self) -> list[Tunnel]:
        """Those that are open."""
        return [tunnel for tunnel in self._open.values() if self._alive(tunnel)]

    async def open(self, peer_id: str, *, timeout_s: float = REACH_S) -> str:
        """URL of the peer's own listener, through the tunnel that is there or a new one.

        Raises Unavailable: kubo_unavailable, tunnels_off (this Kubo mounts no streams, or is on another machine),
        peer_unreachable; SourceUnavailable as `ask_who` does; Overloaded(too_many_tunnels).
        """
        return (await self._opened(peer_id, timeout_s)).url

    @asynccontextmanager
    async def using(self, peer_id: str, *, timeout_s: float = REACH_S) -> AsyncIterator[Tunnel]:
        """The same, not closed as idle until left."""
        tunnel = await self._opened(peer_id, timeout_s)
        tunnel.users += 1
        try:
            yield tunnel
        finally:
            tunnel.users -= 1
            tunnel.last_used = time.monotonic()

    async def run(self) -> None:
        """Closes what was idle for too long, until cancelled."""
        while True:
            await asyncio.sleep(self._idle_s / 4)
            await self.sweep()

    async def sweep(self) -> None:
        late = time.monotonic() - self._idle_s
        for tunnel in list(self._open.values()):
            if not tunnel.users and (tunnel.last_used <= late or not self._alive(tunnel)):
                await self._close(tunnel)

    async def doubt(self, tunnel: Tunnel) -> None:
        """For who lost a connection there: one that Kubo does not have any more (it restarted faster than anybody
        noticed, or somebody closed it) is forgotten, and made anew when it is asked for next."""
        try:
            listed = await tunnel.client.streams.mounts(PROTOCOL)
        except Unavailable:
            return
        if tunnel.mount not in listed and self._open.get(tunnel.peer_id) is tunnel:
            del self._open[tunnel.peer_id]
            log.info("tunnel.lost peer=%s", tunnel.peer_id)

    async def aclose(self) -> None:
        async with asyncio.TaskGroup() as group:  # at once: where Kubo hangs, each takes CLOSE_S
            for tunnel in list(self._open.values()):
                group.create_task(self._close(tunnel))

    async def _opened(self, peer_id: str, timeout_s: float) -> Tunnel:
        lock = self._opening.setdefault(peer_id, asyncio.Lock())
        async with lock:
            tunnel = self._open.get(peer_id)
            if tunnel is None or not self._alive(tunnel):
                client = self._client()
                self._open.pop(peer_id, None)  # of a daemon that is gone
                await self._make_room()
                self._making += 1
                try:
                    tunnel = self._open[peer_id] = await self._made(client, peer_id, timeout_s)
                finally:
                    self._making -= 1
        tunnel.last_used = time.monotonic()
        return tunnel

    def _alive(self, tunnel: Tunnel) -> bool:
        """Does the daemon that holds it still run, as far as is known?"""
        return self._kubo.state == "ready" and self._kubo.client is tunnel.client

    async def _made(self, client: KuboClient, peer_id: str, timeout_s: float) -> Tunnel:
        name = f"peer:{peer_id}"
        clock = asyncio.get_running_loop()
        until = clock.time() + timeout_s
        try:
            await client.connect(f"/p2p/{peer_id}", timeout_s=timeout_s)
        except Unavailable as exc:
            if exc.code in ("kubo_error", "kubo_timeout"):
                raise Unavailable(f"{name} cannot be reached: {exc}", code="peer_unreachable") from exc
            raise
        mount = await self._mount(client, peer_id)
        url = f"http://127.0.0.1:{mount.listen_port}"
        try:
            who = await ask_who(url, name=name, peer_id=peer_id, timeout_s=max(0.5, until - clock.time()))
        except BaseException:
            await _unmount(client, mount)
            raise
        log.info("tunnel.open peer=%s node=%s version=%s", peer_id, who.peer_id, ascii(who.version[:40]))
        return Tunnel(peer_id, url, mount, client, who)

    def _client(self) -> KuboClient:
        client = self._kubo.client
        if not is_loopback(urlsplit(client.url).hostname or ""):
            raise Unavailable("tunnels need a Kubo on this machine", code="tunnels_off")
        return client

    async def _mount(self, client: KuboClient, peer_id: str) -> Mount:
        """Not stopped half-way: a port that was opened is known, or closed again before a cancel goes on."""
        mounting = asyncio.create_task(self._mounted(client, peer_id), name=f"tunnel to {peer_id}")
        try:
            return await asyncio.shield(mounting)
        except asyncio.CancelledError:
            await asyncio.wait([mounting])
            if mounting.exception() is None:
                await _unmount(client, mounting.result())
            raise

    async def _mounted(self, client: KuboClient, peer_id: str) -> Mount:
        """Kubo chooses the port, so that nobody can be faster; which one it took is read off its list."""
        async with self._mounting:
            before = set(await client.streams.mounts(PROTOCOL))
            await client.streams.forward(PROTOCOL, peer_id)
            target = f"/p2p/{peer_id}"
            made = [m for m in await client.streams.mounts(PROTOCOL) if m.target == target and m not in before]
        if len(made) != 1 or made[0].listen_port is None:
            raise Unavailable(f"Kubo does not list its port for {peer_id}", code="kubo_error")
        return made[0]

    async def _make_room(self) -> None:
        if len(self._open) + self._making < self._limit:
            return
        idle = min((t for t in self._open.values() if not t.users), key=lambda t: t.last_used, default=None)
        if idle is None:
            raise Overloaded(f"{self._limit} tunnels are in use", code="too_many_tunnels", retry_after_s=30)
        await self._close(idle)

    async def _close(self, tunnel: Tunnel) -> None:
        if self._open.get(tunnel.peer_id) is tunnel:
            del self._open[tunnel.peer_id]
        if self._alive(tunnel):
            await _unmount(tunnel.client, tunnel.mount)
            log.info("tunnel.close peer=%s", tunnel.peer_id)


async def _unmount(client: KuboClient, mount: Mount) -> None:
    """Bounded, also while we are being cancelled: a port left open would lead to the peer until Kubo ends."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await client.streams.close(mount)
    except (TimeoutError, NodeError) as exc:
        log.warning("tunnel.left port=%s reason=%s", mount.listen_port, exc)
