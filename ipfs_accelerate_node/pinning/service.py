"""What others ask this node to keep: each request is fetched, verified, kept and seeded like a pin of the user's.

A request outlives its caller and the daemon: those that had not ended go on at the next start. Several may name one
CID; it is kept until the last of them goes, and after that only if the user keeps it too. What is no UnixFS file or
directory cannot be kept (the store holds files): such a request fails and says so. A key sees its own requests only.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import (
    EXIT_UNAVAILABLE,
    NodeError,
    NotFound,
    Problem,
    QuotaExceeded,
    Unavailable,
    problem,
)
from ipfs_accelerate_node.fetch.jobs import PinJob
from ipfs_accelerate_node.fetch.pins import KUBO_PATIENCE_S, Meant, Pins, Wish
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.pinning.origins import MAX_ORIGINS, dial
from ipfs_accelerate_node.pinning.requests import Ask, PinRequest, Status, Wanted
from ipfs_accelerate_node.pinning.shelf import RequestShelf
from ipfs_accelerate_node.store import Store

log = logging.getLogger(__name__)

AT_ONCE = 8  # requests that are being fetched; the others are queued
RETRY_S = (5.0, 30.0, 120.0)  # waits before a source is asked again; who announces late is found late
MAX_REQUESTS = 10_000  # of one key
_LOST = {"code": "unpinned", "status_details": "it is not kept here any more: the node's user let it go, or lost it"}


class PinningService:
    """Its tasks live in the group that is passed in. stored: finds what is here already. retry_s: as `RETRY_S`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        shelf: RequestShelf,
        pins: Pins,
        kubo: KuboService,
        group: asyncio.TaskGroup,
        *,
        stored: Meant,
        retry_s: tuple[float, ...] = RETRY_S,
    ) -> None:
        self._config = config
        self._store = store
        self._pins = pins
        self._kubo = kubo
        self._group = group
        self._stored = stored
        self._retry_s = retry_s
        self._shelf = shelf
        self._places = asyncio.Semaphore(AT_ONCE)
        self._settling = asyncio.Lock()  # who keeps a root is looked at and changed in one step
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._jobs: dict[str, str] = {}
        self._noting: set[asyncio.Task[None]] = set()  # each waits for a pin of the user's own
        self._delegates: tuple[KuboClient | None, list[str]] = (None, [])
        self._local = config.kubo_loopback or is_loopback(config.host)

    async def resume(self) -> None:
        """Requests that had not ended when the node stopped go on."""
        for request in await asyncio.to_thread(self._shelf.unfinished):
            self._begin(request)

    def stop(self) -> None:
        """Requests under way stay as they are, for `resume`."""
        for task in (*self._tasks.values(), *self._noting):
            task.cancel()

    # -- what callers ask

    async def add(self, owner: str, ask: Ask) -> PinRequest:
        """A new request, under way. Raises QuotaExceeded where nothing more can be kept, or for too many requests."""
        return await self._added(owner, ask, replaces=None)

    async def replace(self, owner: str | None, request_id: str, ask: Ask) -> PinRequest:
        """A new request instead of that one, whose content goes only after the new one is in. Raises NotFound, and as
        `add`."""
        old = await self._owned(owner, request_id)
        made = await self._added(old.owner, ask, replaces=old.id)
        await self._ended(old)
        return made

    async def remove(self, owner: str | None, request_id: str) -> None:
        """Raises NotFound."""
        old = await self._owned(owner, request_id)
        await asyncio.to_thread(self._shelf.remove, old.id)
        await self._ended(old)
        log.info("pinning.removed id=%s root=%s", old.id, old.ask.root)

    async def get(self, owner: str | None, request_id: str) -> PinRequest:
        """owner: a key's id; None may see everybody's. Raises NotFound."""
        await self._reconcile()
        return self._now(await self._owned(owner, request_id))

    async def find(self, owner: str | None, wanted: Wanted) -> tuple[int, list[PinRequest]]:
        """How many there are, and the latest of them."""
        await self._reconcile()
        count, found = await asyncio.to_thread(self._shelf.find, owner, wanted)
        return count, [self._now(request) for request in found]

    async def delegates(self) -> list[str]:
        """Where our Kubo can be dialled, by whoever has what it is asked to keep."""
        if self._kubo.state != "ready":
            return []
        client = self._kubo.client
        if self._delegates[0] is not client or not self._delegates[1]:
            try:
                self._delegates = (client, (await client.addresses())[:MAX_ORIGINS])
            except Unavailable as exc:
                log.warning("pinning.no_delegates reason=%s", exc)
                return []
        return self._delegates[1]

    def note_own(self, job: PinJob) -> None:
        """The user pins something himself: it then stays, whatever becomes of requests."""
        noting = self._group.create_task(self._note_own(job), name=f"note pin {job.id}")
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)

    # -- what is done about them

    async def _note_own(self, job: PinJob) -> None:
        last = await self._end(job)
        if last.state != "pinned" or last.root is None:
            return
        async with self._settling:
            if await asyncio.to_thread(self._shelf.asks_for, last.root):
                await asyncio.to_thread(self._shelf.set_own, last.root, True)

    async def _added(self, owner: str, ask: Ask, *, replaces: str | None) -> PinRequest:
        if self._store.room_bytes() + await asyncio.to_thread(self._store.evictable_bytes) <= 0:
            raise QuotaExceeded("this node is full: nothing more can be kept until something is unpinned")
        if replaces is None and await asyncio.to_thread(self._shelf.count, owner) >= MAX_REQUESTS:
            raise QuotaExceeded(f"this key has {MAX_REQUESTS} requests: remove some first", code="too_many_requests")
        async with self._settling:
            model = await asyncio.to_thread(self._store.model, ask.cid)
            if not await asyncio.to_thread(self._shelf.asks_for, ask.root):
                await asyncio.to_thread(self._shelf.set_own, ask.root, model is not None and model.pinned)
            made = await asyncio.to_thread(
                lambda: self._shelf.add(secrets.token_hex(16), owner, ask, replaces=replaces)
            )
        log.info("pinning.asked id=%s root=%s origins=%d", made.id, ask.root, len(ask.origins))
        self._begin(made)
        return made

    async def _owned(self, owner: str | None, request_id: str) -> PinRequest:
        found = await asyncio.to_thread(self._shelf.get, request_id)
        if found is None or owner not in (None, found.owner):
            raise NotFound(f"no pin request has the id {shown(request_id)}", code="pin_not_found")
        return found

    def _begin(self, request: PinRequest) -> None:
        task = self._group.create_task(self._run(request), name=f"pin request {request.id}")
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    async def _run(self, request: PinRequest) -> None:
        for wait_s in (*self._retry_s, None):
            try:
                status, info = await self._tried(request)
            except NodeError as exc:
                status, info = Status.FAILED, _told(problem(exc))
            if status is Status.FAILED and wait_s is not None and info.get("may_pass") == "yes":
                info = {**info, "status_details": f"asked again in {wait_s:g} s: {info['status_details']}"}
                await asyncio.to_thread(self._shelf.mark, request.id, Status.QUEUED, info)
                await asyncio.sleep(wait_s)
                continue
            await asyncio.to_thread(self._shelf.mark, request.id, status, info)
            log.info("pinning.ended id=%s root=%s status=%s", request.id, request.ask.root, status)
            return

    async def _tried(self, request: PinRequest) -> tuple[Status, dict[str, str]]:
        """One try at fetching and keeping it."""
        async with self._places:
            await asyncio.to_thread(self._shelf.mark, request.id, Status.PINNING, {})
            unreached = await self._dial(request.ask)
            job = self._pins.start(str(request.ask.cid), self._stored, Wish())
            self._jobs[request.id] = job.id
            try:
                job = await self._end(job)
            except asyncio.CancelledError:
                await self._pins.cancel(job.id)
                raise
            finally:
                del self._jobs[request.id]
        if job.state == "pinned":
            note = job.receipt.seed_note if job.receipt is not None else None
            return Status.PINNED, {} if note is None else {"status_details": note}
        return Status.FAILED, {**_told(job.error or {}), **unreached}

    async def _end(self, job: PinJob) -> PinJob:
        """Its last state. What comes before is seen by `_now`."""
        async for state in self._pins.updates(job):
            job = state
        return job

    async def _dial(self, ask: Ask) -> dict[str, str]:
        """What is to be said of origins that could not be reached."""
        if not ask.origins or await asyncio.to_thread(self._store.model, ask.cid) is not None:
            return {}
        try:
            client = await self._kubo.wait_ready(KUBO_PATIENCE_S)
        except Unavailable as exc:
            return {"origins": str(exc)}
        failures = await dial(client, ask.origins, local=self._local)
        return {"origins": "; ".join(f"{o}: {why}" for o, why in failures.items())[:1000]} if failures else {}

    async def _ended(self, request: PinRequest) -> None:
        """After a request is off the shelf: its fetch ends, and what nobody asks for any more may go."""
        if (task := self._tasks.get(request.id)) is not None:
            task.cancel()
            await asyncio.wait([task])
        root = request.ask.root
        async with self._settling:
            if request.status is Status.FAILED or await asyncio.to_thread(self._shelf.asks_for, root):
                return
            own = await asyncio.to_thread(self._shelf.is_own, root)
            await asyncio.to_thread(self._shelf.set_own, root, False)
            model = await asyncio.to_thread(self._store.model, request.ask.cid)
            if model is not None and not own:
                await asyncio.to_thread(self._store.unpin, model.root)

    async def _reconcile(self) -> None:
        """Requests say pinned only while the store does."""
        said = await asyncio.to_thread(self._shelf.pinned_roots)
        if not said:
            return
        kept = {str(model.root) for model in await asyncio.to_thread(self._store.models) if model.pinned}
        for root in said - kept:
            await asyncio.to_thread(self._shelf.lost, root, _LOST)
            await asyncio.to_thread(self._shelf.set_own, root, False)

    def _now(self, request: PinRequest) -> PinRequest:
        """With how far its fetch is."""
        job = self._pins.jobs.find(self._jobs.get(request.id, ""))
        if request.status is not Status.PINNING or job is None:
            return request
        told = {"status_details": f"{job.state}, {job.bytes_done} of {job.bytes_total or 'an unknown number of'} bytes"}
        return replace(request, info={**request.info, **told, "bytes_done": str(job.bytes_done)})


def _told(error: Problem) -> dict[str, str]:
    """A failure as the texts that a status holds. may_pass: the same may work later."""
    may_pass = "yes" if error.get("exit_code") == EXIT_UNAVAILABLE and error.get("code") != "cancelled" else "no"
    return {
        "code": str(error.get("code", "error")),
        "status_details": str(error.get("detail", "no reason was given"))[:1000],
        "may_pass": may_pass,
    }
