"""The way in: keeps Kubo bringing strangers to the peers' listener, also after it restarts, until the node stops.

An external daemon remembers what a crashed node told it, so a mount of ours may lead to a port where by now somebody
else listens: whatever it leads to that is not a node is closed before ours is made.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import NodeError, SourceUnavailable, Unavailable
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.streams import Mount
from ipfs_accelerate_node.peers.protocol import AGENT, PROTOCOL, Who
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace

log = logging.getLogger(__name__)

RETRY_S = 1.0  # doubled up to LOOK_S
LOOK_S = 60.0  # somebody may have closed it: `ipfs p2p close --all`
CLOSE_S = 3.0
_LOOK_AT_S = 2.0

State = Literal["off", "waiting", "open"]


@dataclass(frozen=True, slots=True)
class Standing:
    """state: off (no listener), waiting (for Kubo, or reason says for what), open (others can come in)."""

    state: State
    reason: str | None = None


class Door:
    """standing: how it is now."""

    def __init__(self, kubo: KuboService) -> None:
        self._kubo = kubo
        self.standing = Standing("off", "tunnels are switched off, or there is no Kubo")

    async def keep(self, port: int) -> None:
        """Until cancelled: whoever dials this node's Kubo by our protocol is brought to that port of 127.0.0.1."""
        client: KuboClient | None = None
        self._set("waiting", "for Kubo")
        try:
            while True:
                client = await self._kubo.next_ready(client)
                await self._keep_with(client, port)
        finally:
            await self._shut(client, port)

    async def _keep_with(self, client: KuboClient, port: int) -> None:
        """Until this daemon is gone, or another run of it is there."""
        retry_s = RETRY_S
        while self._kubo.state != "ready" or self._kubo.client is client:
            try:
                await self._mount(client, port)
                self._set("open")
                pause_s, retry_s = LOOK_S, RETRY_S
            except Unavailable as exc:
                self._set("waiting", str(exc))
                pause_s, retry_s = retry_s, min(2 * retry_s, LOOK_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._kubo.next_ready(client)
            except TimeoutError:
                continue
            return

    async def _mount(self, client: KuboClient, port: int) -> None:
        if not is_loopback(urlsplit(client.url).hostname or ""):
            raise Unavailable("tunnels need a Kubo on this machine", code="tunnels_off")
        for mount in await client.streams.mounts(PROTOCOL):
            if mount.listen_port is not None:
                continue  # one of the ways out
            if mount.target_port == port:
                return
            if mount.target_port is not None and await _is_door(mount.target_port):
                raise Unavailable("another node has this Kubo's door", code="door_taken")
            log.warning("door.stale port=%s: closed", mount.target_port)
            await client.streams.close(mount)
        await client.streams.listen(PROTOCOL, port)
        log.info("door.open peer=%s", client.peer_id)

    async def _shut(self, client: KuboClient | None, port: int) -> None:
        self._set("off", "the node is stopping")
        if client is None or self._kubo.state != "ready" or self._kubo.client is not client:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                for mount in await client.streams.mounts(PROTOCOL):
                    if _leads_to(mount, port):
                        await client.streams.close(mount)
        except (TimeoutError, NodeError) as exc:
            log.warning("door.left reason=%s", exc)

    def _set(self, state: State, reason: str | None = None) -> None:
        if (standing := Standing(state, reason)) != self.standing:
            self.standing = standing
            if state == "waiting":
                log.info("door.waiting reason=%s", reason)


def _leads_to(mount: Mount, port: int) -> bool:
    return mount.listen_port is None and mount.target_port == port


async def _is_door(port: int) -> bool:
    """Does a node's listener for peers answer at that port of this machine? Its other listener, which may have got the
    port since, does not say where it is dialled."""
    origin = Origin.parse(f"http://127.0.0.1:{port}")
    pace = Pace(connect_s=_LOOK_AT_S, first_byte_s=_LOOK_AT_S, stall_s=_LOOK_AT_S)
    try:
        async with GuardedSession([origin], pace=pace) as session:
            async with session.request("GET", origin.url("/api/peer"), Asked(f"port {port}")) as reply:
                if reply.status != 200:
                    return False
                who = msgspec.json.decode(await reply.read(1 << 14), type=Who)
    except (SourceUnavailable, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return who.agent == AGENT and who.dial is not None
