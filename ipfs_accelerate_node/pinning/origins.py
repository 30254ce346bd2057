"""Addresses that a caller names as having something: which of them this node dials, and doing so.

Who asks for a pin may make our Kubo open connections. Where only this machine can ask, every address may be dialled;
where others can, only literal public ones: nobody may make this node knock at the doors of its own network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.kubo import KuboClient
from ipfs_accelerate_node.sources.guard import public

log = logging.getLogger(__name__)

MAX_ORIGINS = 20
DIAL_TIMEOUT_S = 10.0


def dialled(origin: str, *, local: bool) -> bool:
    """Whether an origin may be dialled: a multiaddr that ends in its PeerID. local: only this machine can ask."""
    parts = origin.split("/")
    if len(parts) < 5 or parts[0] or parts[-2] != "p2p" or peer_id(parts[-1]) is None or len(origin) > 1024:
        return False
    if local:
        return True
    if parts[1] not in ("ip4", "ip6") or "p2p-circuit" in parts:
        return False
    try:
        return public(ipaddress.ip_address(parts[2]))
    except ValueError:
        return False


async def dial(client: KuboClient, origins: Iterable[str], *, local: bool) -> dict[str, str]:
    """Connects to all at once; what came of each that could not be reached, by origin. Never raises for one of them."""

    async def one(origin: str) -> str | None:
        if not dialled(origin, local=local):
            return "not dialled: not a public address that ends in /p2p/PEERID"
        try:
            await client.connect(origin, timeout_s=DIAL_TIMEOUT_S)
        except NodeError as exc:
            return str(exc)
        return None

    asked = list(dict.fromkeys(origins))[:MAX_ORIGINS]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(origin), name="dial an origin") for origin in asked]
    failures = {origin: reason for origin, task in zip(asked, tasks, strict=True) if (reason := task.result())}
    for origin, reason in failures.items():
        log.info("pinning.origin_unreached origin=%s reason=%s", ascii(origin), reason)
    return failures
