"""Keeps a Kubo within reach: starts and watches our own child or a daemon of the user's, and says how it stands.

One task per service owns everything: the child, the client, the state. The state changes only there, without an await
in between; others read it. A client taken before a restart fails with Unavailable, never hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from ipfs_accelerate_node.errors import InvalidConfig, NodeError, Unavailable
from ipfs_accelerate_node.kubo.binary import HINT, checked_version
from ipfs_accelerate_node.kubo.calls import Feature
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.endpoint import Endpoint, endpoint, endpoint_of_repo
from ipfs_accelerate_node.kubo.managed import Child, Running, running

log = logging.getLogger(__name__)

Mode = Literal["managed", "external", "off"]
State = Literal["off", "starting", "ready", "down"]

REPO = "kubo"  # below the cache; files to be seeded lie below the cache too, as Kubo's filestore demands


@dataclass(frozen=True, slots=True)
class Pace:
    """All in seconds. probe: between signs of life; patience: for one of them; give_up: a child silent for so long is
    killed and started again (an external daemon is only waited for); back-off doubles from first_retry to
    last_retry."""

    probe_s: float = 3.0
    patience_s: float = 4.0
    give_up_s: float = 60.0
    first_retry_s: float = 0.5
    last_retry_s: float = 30.0


class KuboService:
    """Async context manager. Entering never waits for Kubo; `wait_ready` does.

    cache: the node's data folder, the managed repo lies below it. url or ipfs_path: of an external daemon. auth: for
    it, ``basic:…`` or ``bearer:…``. key_seed: 32 bytes, the managed daemon's identity.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        cache: Path,
        binary: Path | None = None,
        url: str | None = None,
        auth: str | None = None,
        key_seed: bytes | None = None,
        swarm_key: Path | None = None,
        bootstrap: tuple[str, ...] | None = None,
        loopback: bool = False,
        ipfs_path: Path | None = None,
        features: Collection[Feature] = frozenset(),
        pace: Pace | None = None,
    ) -> None:
        self.mode: Mode = mode
        self.state: State = "off" if mode == "off" else "starting"
        self.reason: str | None = "switched off" if mode == "off" else None
        self._pace = pace or Pace()
        self._binary = binary
        self._child: Child | None = None
        self._place: Endpoint | None = None
        self._ipfs_path = ipfs_path
        self._auth = auth
        self._client: KuboClient | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        if mode == "managed":
            if key_seed is None or len(key_seed) != 32:
                raise InvalidConfig("a managed Kubo needs the node key (32-byte seed)", param="kubo")
            if binary is not None:
                self._child = Child(binary, cache.absolute() / REPO, key_seed, swarm_key, bootstrap, loopback, features)
        if mode == "external":
            if url is None and ipfs_path is None:
                raise InvalidConfig("an external Kubo needs its URL or IPFS_PATH", param="kubo")
            if url is not None:
                self._place = endpoint(url, auth)

    @property
    def client(self) -> KuboClient:
        """Of the daemon that is ready now. Raises Unavailable (kubo_unavailable) with the reason otherwise."""
        if self.state != "ready" or self._client is None:
            raise self._unavailable()
        return self._client

    async def wait_ready(self, timeout_s: float) -> KuboClient:
        """The client, as soon as there is one. Raises Unavailable at the timeout, or at once when it will never be."""
        await self.wait_for("ready", timeout_s=timeout_s)
        return self.client

    async def next_ready(self, previous: KuboClient | None) -> KuboClient:
        """The client of a daemon that is ready and is another one (or another run of it) than the previous client's.

        Waits as long as that takes: for ever where Kubo is off.
        """
        while self.state != "ready" or self._client is None or self._client is previous:
            self._changed.clear()
            await self._changed.wait()
        return self._client

    async def wait_for(self, state: State, *, timeout_s: float) -> None:
        """Until it stands so, or will never change again. Raises Unavailable at the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.state != state and self._task is not None and not self._task.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            raise self._unavailable() from exc

    async def __aenter__(self) -> Self:
        if self.mode != "off":
            self._task = asyncio.create_task(self._supervise(), name="kubo service")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._set("off", "stopped")
        if not task.cancelled() and (bug := task.exception()) is not None:
            raise bug

    async def _supervise(self) -> None:
        """Have a daemon, watch it until it is lost, again. Ends only when that can never work."""
        if self.mode == "managed" and not await self._binary_usable():
            return
        retry_s, said = self._pace.first_retry_s, ""
        while True:
            try:
                async with self._daemon() as (place, child):
                    client = await KuboClient.open(place, managed=child is not None)
                    retry_s, said = self._pace.first_retry_s, ""
                    await self._serve(client, child)
            except InvalidConfig as exc:
                self._set("down", str(exc))
                return
            except NodeError as exc:
                if said != str(exc):
                    said = str(exc)
                    log.warning("kubo.down retry_s=%.1f reason=%s", retry_s, said)
                self._set("down", str(exc))
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, self._pace.last_retry_s)

    async def _serve(self, client: KuboClient, child: Running | None) -> None:
        """Let others use the client until its daemon is lost, which is raised as Unavailable."""
        try:
            self._ready(client)
            await self._watch(client, child)
        except Unavailable as exc:
            self._set("down", str(exc))
            raise
        finally:
            self._client = None
            await client.aclose()

    async def _binary_usable(self) -> bool:
        if self._child is None:
            self._set("down", f"no Kubo binary found: {HINT}")
            return False
        try:
            await checked_version(self._child.binary)
        except Unavailable as exc:
            self._set("down", str(exc))
            return False
        return True

    @asynccontextmanager
    async def _daemon(self) -> AsyncIterator[tuple[Endpoint, Running | None]]:
        if self._child is not None:
            async with running(self._child) as child:
                yield child.place, child
        elif self._place is not None:
            yield self._place, None
        else:
            assert self._ipfs_path is not None
            yield await asyncio.to_thread(endpoint_of_repo, self._ipfs_path, self._auth), None

    async def _watch(self, client: KuboClient, child: Running | None) -> None:
        """Returns never; raises Unavailable when this daemon is lost."""
        ended = None if child is None else asyncio.create_task(child.wait(), name="kubo exit")
        clock = asyncio.get_running_loop()
        last_answer = clock.time()
        try:
            while True:
                if ended is None:
                    await asyncio.sleep(self._pace.probe_s)
                elif (await asyncio.wait([ended], timeout=self._pace.probe_s))[0]:
                    raise Unavailable(ended.result(), code="kubo_unavailable")
                try:
                    await client.probe(timeout_s=self._pace.patience_s)
                except Unavailable as exc:
                    if child is None:
                        raise
                    if clock.time() - last_answer > self._pace.give_up_s:
                        child.kill()
                        raise
                    self._set("down", str(exc))
                else:
                    last_answer = clock.time()
                    self._ready(client)
        finally:
            if ended is not None:
                ended.cancel()

    def _ready(self, client: KuboClient) -> None:
        if self.state != "ready":
            log.info("kubo.ready peer=%s version=%s url=%s", client.peer_id, client.version, client.url)
        self._client = client
        self._set("ready", None)

    def _set(self, state: State, reason: str | None) -> None:
        self.state, self.reason = state, reason
        self._changed.set()

    def _unavailable(self) -> Unavailable:
        reason = self.reason or ("still starting" if self.state == "starting" else self.state)
        return Unavailable(f"Kubo is not available: {reason}", code="kubo_unavailable", state=self.state)
