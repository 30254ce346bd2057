"""A whole node in this process, behind its real listener: real store, real registry, no Kubo."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from ipfs_accelerate_node.api.app import build_app
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.node import Node
from tests.support.http import Served, serving


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Running:
    """key: the admin key of this run."""

    node: Node
    served: Served
    keys: KeyRing
    key: str
    session: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.served.url

    async def ask(
        self, method: str, path: str, *, key: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> Reply:
        """path: as it stands in the request line. body: `json` or `data` of aiohttp."""
        sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, headers=sent, allow_redirects=False, **body) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def admin(self, method: str, path: str, **body: Any) -> Reply:
        return await self.ask(method, path, key=self.key, **body)


@asynccontextmanager
async def running(cache: Path, **settings: Any) -> AsyncIterator[Running]:
    """settings: of Config; a host other than loopback is what the access rules believe, the socket is on loopback."""
    config = Config(cache=cache, port=0, kubo="off", **settings)
    keys = KeyRing.open(cache / "keys.json")
    async with (
        Node(config) as node,
        serving(cache, lambda port: build_app(node, keys, config, port=port)) as served,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        yield Running(node, served, keys, keys.session_key(), session)


def model(folder: Path, text: str, *more: str) -> Path:
    """A directory with a config.json and more files, each holding text and its own name."""
    folder.mkdir()
    for name in ("config.json", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + name)
    return folder
