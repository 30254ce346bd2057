"""Who has it: Kubo's search for providers, read as it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.kubo import calls
from ipfs_accelerate_node.kubo.rpc import Rpc

_PROVIDER = 4  # Type of a routing event that carries providers


async def find_providers(rpc: Rpc, cid: Cid, *, limit: int, timeout_s: float) -> AsyncGenerator[str, None]:
    """Peer ids of those who announced it, as they are found, each once, at most limit of them. A search of the whole
    network has no other end than timeout_s, so reaching that is no error."""
    query = [("arg", str(cid)), ("num-providers", str(limit))]
    seen: set[str] = set()
    clock = asyncio.get_running_loop()
    until = clock.time() + timeout_s
    async with aclosing(rpc.lines(calls.FIND_PROVIDERS, query)) as lines:
        while len(seen) < limit:
            try:
                async with asyncio.timeout_at(until):
                    line = await anext(lines)
            except (TimeoutError, StopAsyncIteration):
                return
            for peer_id in _providers(line):
                if peer_id not in seen and len(seen) < limit:
                    seen.add(peer_id)
                    yield peer_id


def _providers(line: dict[str, Any]) -> list[str]:
    if line.get("Type") != _PROVIDER:
        return []
    try:
        return [str(peer["ID"]) for peer in line.get("Responses") or ()]
    except (KeyError, TypeError) as exc:
        raise Unavailable("Kubo named a provider in a way not understood", code="kubo_error") from exc
