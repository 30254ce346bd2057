"""Keeps Kubo's view equal to the store's: every stored model is seeded out of its one copy, or a note says why not.

A model committed while Kubo was away, or before it was ready, is seeded as soon as Kubo is there; whether it may be
announced is the store's knowledge (`StoredModel.announce`), so a restart changes nothing. A model that leaves the
store, removed, evicted or quarantined, leaves Kubo too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.errors import NodeError, NotFound, Unavailable
from ipfs_accelerate_node.fetch.withdrawals import Withdrawals
from ipfs_accelerate_node.kubo import KuboClient, KuboService, Seeded, is_seeded, kept_roots, let_go, seed, unseed
from ipfs_accelerate_node.store import Store

log = logging.getLogger(__name__)

Nodes = Sequence[tuple[Cid, bytes]]
RETRY_S = 5.0
NOT_PUBLIC = "served to nobody: it mirrors a gated or private Hub repository (`share` changes that)"
INCOMPLETE = "served over HTTP only: {count} of its files are not here, and Kubo keeps whole models"


class Seeder:
    """Owns the order of what Kubo is told: one model at a time, each is read whole. `run` is its long-lived task."""

    def __init__(self, store: Store, kubo: KuboService) -> None:
        self._store = store
        self._kubo = kubo
        self._turn = asyncio.Lock()
        self._withdrawals = Withdrawals(store)
        self._is_late = asyncio.Event()  # something is to be taken back, and could not be
        self._departed: asyncio.Queue[tuple[ModelPlan, Nodes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        store.on_departure(lambda plan, nodes: _hand_over(loop, self._departed, plan, nodes))

    async def seed(self, root: Cid, *, announce: bool, brought: bool) -> Seeded:
        """brought: Kubo fetched the blocks itself and still holds a second copy. Never raises for Kubo's faults: a
        model that is stored and not seeded is a success with a note. What is not public is never handed to Kubo, which
        gives a block to every peer that asks for it, announced or not. Nor is what is incomplete: its pin would make
        Kubo look for the rest."""
        model = await asyncio.to_thread(self._store.model, root)
        if model is not None and not model.public:
            return Seeded(False, NOT_PUBLIC)
        if model is not None and not model.complete:
            return Seeded(False, INCOMPLETE.format(count=model.absent_files))
        if self._kubo.state == "off":
            return Seeded(False, f"served over HTTP only: Kubo is {self._kubo.reason}")
        try:
            client = self._kubo.client
        except Unavailable as exc:
            return Seeded(False, f"{exc}; it is seeded as soon as Kubo is ready")
        try:
            async with self._turn:
                return await self._seed(client, root, announce=announce, brought=brought)
        except NodeError as exc:
            log.warning("seed.failed root=%s reason=%s", root, exc)
            return Seeded(False, f"served over HTTP only: {exc}")

    async def _seed(self, client: KuboClient, root: Cid, *, announce: bool, brought: bool) -> Seeded:
        model = await asyncio.to_thread(self._store.model, root)
        if model is not None and not model.public:  # since its turn was waited for
            return Seeded(False, NOT_PUBLIC)
        plan, nodes, blobs = await asyncio.to_thread(self._parts, root)
        return await seed(client, plan, nodes, blobs, announce=announce, brought=brought)

    def _parts(self, root: Cid) -> tuple[ModelPlan, Nodes, dict[Cid, Path]]:
        plan = self._store.plan(root)
        if plan is None:
            raise NotFound(f"{root} is not in the store", cid=str(root))
        blobs: dict[Cid, Path] = {}
        for file in plan.files:
            if (stored := self._store.file(file.cid)) is None:
                raise NotFound(f"a file of {root} is no longer in the store: {file.cid}", cid=str(file.cid))
            blobs[file.cid] = stored.path
        return plan, self._store.nodes(root), blobs

    async def withdraw(self, root: Cid) -> None:
        """A model that is stored still is no longer public: Kubo keeps, gives and announces nothing of it that no
        public model has. Raises NotFound, Unavailable where Kubo cannot be told: then that is done as soon as it can
        be, also after a restart, and also by a daemon that is not our own."""
        await asyncio.to_thread(self._withdrawals.note, root)
        if self._kubo.state == "off":
            return
        try:
            async with self._turn:
                await self._withdraw(self._kubo.client, root)
        except Unavailable:
            self._is_late.set()
            raise
        await asyncio.to_thread(self._withdrawals.done, root)

    async def _withdraw(self, client: KuboClient, root: Cid) -> None:
        plan, nodes, keep = await asyncio.to_thread(self._private_parts, root)
        await unseed(client, plan, nodes, keep=keep)
        log.info("unseed.private root=%s", root)

    def _private_parts(self, root: Cid) -> tuple[ModelPlan, Nodes, set[Cid]]:
        """With the CIDs of files and nodes that public models hold too."""
        plan = self._store.plan(root)
        if plan is None:
            raise NotFound(f"{root} is not in the store", cid=str(root))
        nodes = self._store.nodes(root)
        cids = {cid.canonical for cid in (*(file.cid for file in plan.files), *(cid for cid, _ in nodes))}
        return plan, nodes, {cid for cid in cids if self._store.has(cid, public_only=True)}

    async def run(self) -> None:
        """Follows the store and Kubo: seeds what is not seeded each time another daemon is ready, and takes back what
        left the store. Ends only by cancel."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_kubo(), name="seed stored models")
            group.create_task(self._follow_departures(), name="unseed departed models")
            group.create_task(self._follow_withdrawals(), name="unseed private models")

    async def _follow_kubo(self) -> None:
        client: KuboClient | None = None
        while True:
            client = await self._kubo.next_ready(client)
            await self._catch_up(client)
            if client.managed:  # another daemon may keep the models of other nodes too
                await self._release_departed(client)
            for model in await asyncio.to_thread(self._store.models):
                if not (model.public and model.complete):
                    continue
                try:
                    if not await is_seeded(client, model.root, announced=model.announce):
                        await self.seed(model.root, announce=model.announce, brought=False)
                except NodeError as exc:
                    log.warning("seed.check_failed root=%s reason=%s", model.root, exc)

    async def _catch_up(self, client: KuboClient) -> None:
        """What was taken back while Kubo was away."""
        for root in await asyncio.to_thread(self._withdrawals.pending):
            try:
                async with self._turn:
                    model = await asyncio.to_thread(self._store.model, root)
                    if model is None:
                        await let_go(client, root)
                    elif not model.public:
                        await self._withdraw(client, root)
                await asyncio.to_thread(self._withdrawals.done, root)
            except NodeError as exc:
                self._is_late.set()
                log.info("unseed.still_late root=%s reason=%s", root, exc)

    async def _follow_withdrawals(self) -> None:
        """Tries again what Kubo could not be told: it may have been away for too short a time to be missed."""
        while True:
            await self._is_late.wait()
            await asyncio.sleep(RETRY_S)
            self._is_late.clear()
            try:
                await self._catch_up(self._kubo.client)
            except Unavailable:
                self._is_late.set()

    async def _release_departed(self, client: KuboClient) -> None:
        """Models that left the store while Kubo was away, or became private, are no longer kept there. What is left of
        the former, references to files that are gone, is small, and makes way when such a block is fetched again
        (`KuboSource`)."""
        try:
            async with self._turn:
                for root in await kept_roots(client):
                    model = await asyncio.to_thread(self._store.model, root)
                    if model is None:
                        await let_go(client, root)
                        log.info("unseed.late root=%s", root)
                    elif not model.public:
                        await self._withdraw(client, root)
        except NodeError as exc:
            log.warning("unseed.late_failed reason=%s", exc)

    async def _follow_departures(self) -> None:
        """A departure that Kubo cannot be told of now is found when Kubo is ready again."""
        while True:
            plan, nodes = await self._departed.get()
            try:
                async with self._turn:
                    await self._unseed(plan, nodes)
            except NodeError as exc:
                log.info("unseed.skipped root=%s reason=%s", plan.root, exc)
            finally:
                self._departed.task_done()

    async def _unseed(self, plan: ModelPlan, nodes: Nodes) -> None:
        cids = [plan.root, *(file.cid for file in plan.files), *(cid for cid, _ in nodes)]
        held = await asyncio.to_thread(self._store.held, cids)
        if plan.root.canonical not in held:  # else it came back meanwhile
            await unseed(self._kubo.client, plan, nodes, keep=held)

    async def caught_up(self) -> None:
        """Kubo was told of every departure so far, so it refers to no file that is gone."""
        await self._departed.join()


def _hand_over(
    loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[tuple[ModelPlan, Nodes]], plan: ModelPlan, nodes: Nodes
) -> None:
    """From the removing thread to the loop; a loop that has ended needs no news."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, (plan, nodes))
