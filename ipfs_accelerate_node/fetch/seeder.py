"""Keeps Kubo's view equal to the store's: every stored model is seeded out of its one copy, or the receipt says why not.

A model committed while Kubo was away, or before it was ready, is seeded as soon as Kubo is there; whether it may be
announced is the store's knowledge (`StoredModel.announce`), so a restart changes nothing.
"""

from __future__ import annotations

import asyncio
import logging

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.errors import NodeError, NotFound, Unavailable
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.kubo.seeding import Seeded, is_seeded, seed, unseed
from ipfs_accelerate_node.store import Store

log = logging.getLogger(__name__)


class Seeder:
    """Owns the order of seeding: one model at a time, since each reads its files whole."""

    def __init__(self, store: Store, kubo: KuboService) -> None:
        self._store = store
        self._kubo = kubo
        self._turn = asyncio.Lock()

    async def seed(self, root: Cid, *, announce: bool, brought: bool) -> Seeded:
        """brought: Kubo fetched the blocks itself and still holds a second copy. Never raises for Kubo's faults: a model
        that is stored and not seeded is a success with a note."""
        if self._kubo.state == "off":
            return Seeded(False, f"served over HTTP only: {self._kubo.reason or 'Kubo is switched off'}", False)
        try:
            client = self._kubo.client
        except Unavailable as exc:
            return Seeded(False, f"{exc}; it is seeded as soon as Kubo is ready", False)
        try:
            async with self._turn:
                return await self._seed(client, root, announce=announce, brought=brought)
        except NodeError as exc:
            log.warning("seed.failed root=%s reason=%s", root, exc)
            return Seeded(False, f"served over HTTP only: {exc}", False)

    async def _seed(self, client: KuboClient, root: Cid, *, announce: bool, brought: bool) -> Seeded:
        plan, nodes = await self.parts(root)
        blobs = await asyncio.to_thread(self._blob_paths, plan)
        return await seed(client, plan, nodes, blobs, announce=announce, brought=brought)

    async def unseed(self, root: Cid) -> None:
        """Takes a model's references out of Kubo, before its files go."""
        try:
            client = self._kubo.client
        except Unavailable:
            return
        plan, nodes = await self.parts(root)
        async with self._turn:
            await unseed(client, plan, nodes)

    async def parts(self, root: Cid) -> tuple[ModelPlan, list[tuple[Cid, bytes]]]:
        plan = await asyncio.to_thread(self._store.plan, root)
        if plan is None:
            raise NotFound(f"{root} is not in the store", cid=str(root))
        return plan, await asyncio.to_thread(self._store.nodes, root)

    def _blob_paths(self, plan: ModelPlan) -> dict[Cid, object]:
        found = {file.cid: self._store.file(file.cid) for file in plan.files}
        missing = [str(cid) for cid, stored in found.items() if stored is None]
        if missing:
            raise NotFound(f"a file of {plan.root} is no longer in the store: {missing[0]}", cid=missing[0])
        return {cid: stored.path for cid, stored in found.items() if stored is not None}

    async def run(self) -> None:
        """Seeds what is not seeded, each time Kubo becomes ready. Ends only by cancel."""
        while True:
            client = await self._kubo.next_ready()
            for model in await asyncio.to_thread(self._store.models):
                try:
                    if not await is_seeded(client, model.root, announced=model.announce):
                        await self.seed(model.root, announce=model.announce, brought=False)
                except NodeError as exc:
                    log.warning("seed.check_failed root=%s reason=%s", model.root, exc)
