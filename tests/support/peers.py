"""The peers' listener of a node in this process, and requests as a node signs them."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yarl import URL

from ipfs_accelerate_node.api.listener import listening
from ipfs_accelerate_node.api.peers_app import build_peers_app
from ipfs_accelerate_node.api.peers_connection import Allowances, Limits
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.request import DIGEST, Asked, content_digest, sign
from tests.support.running import Reply, Running


@asynccontextmanager
async def listener(here: Running, limits: Limits | None = None) -> AsyncIterator[int]:
    """Its port."""
    allowances = Allowances(limits)
    app = build_peers_app(here.served.app, allowances)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        async with listening(app, sock, accept=allowances.accept):
            yield sock.getsockname()[1]


def signed_body(by: NodeKey, path: str, body: bytes, *, to: str, now: float | None = None) -> dict[str, str]:
    """Headers of a POST."""
    signature = sign(by, Asked("POST", path, body), to=to, now=time.time() if now is None else now)
    return {"Content-Type": "application/json", DIGEST: content_digest(body), **signature}


async def post(here: Running, url: str, path: str, body: object, headers: dict[str, str]) -> Reply:
    """body: as bytes, or what becomes JSON."""
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    sent = {"Connection": "close", **headers}  # a refusal may leave the body unread
    async with here.session.post(URL(url + path, encoded=True), data=data, headers=sent) as reply:
        return Reply(reply.status, reply.headers, await reply.read())
