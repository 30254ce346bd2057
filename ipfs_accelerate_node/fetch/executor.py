"""Hands a stage's jobs out to all sources at once, until nothing is wanted or nobody can help.

One loop decides, on every change and at least every TICK_S; each job is a task of its own, owned by the stage's run. A
source that sent wrong bytes loses all its jobs at once. When the stage is complete, jobs that still run are late copies
of what is here, and are cancelled.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError, SourceUnavailable
from ipfs_accelerate_node.fetch.schedule import Schedule, Standing
from ipfs_accelerate_node.fetch.stage import Stage
from ipfs_accelerate_node.fetch.threads import in_thread

TICK_S = 0.1  # how often a source without work looks whether another's is late
COMPLAINT_S = 5.0  # a source that sent a wrong leaf is given so long to look at its own copy

Job = TypeVar("Job")


class Executor:
    """Lives as long as its fetch. sources_open: whether further sources may still join."""

    def __init__(self, schedule: Schedule, root: Cid) -> None:
        self._schedule = schedule
        self._root = root
        self._stir = asyncio.Event()
        self._jobs: dict[Standing, set[asyncio.Task[None]]] = {}
        self._watches: dict[Standing, asyncio.Task[None]] = {}
        self._complaints: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._fatal: NodeError | None = None
        self.sources_open = False

    def stir(self) -> None:
        """Something changed: somebody may have work now."""
        self._stir.set()

    def fail(self, error: NodeError) -> None:
        """What no source can mend: the stage ends with it."""
        self._fatal = self._fatal or error
        self._stir.set()

    def complain(self, standing: Standing, leaf: Leaf) -> None:
        """Asks a source that sent other bytes once more for the leaf, as a block: a node of ours hashes that before it
        sends it, and so finds its damage. An answer also tells a DAG that lies about a leaf from a source that does."""
        if self._group is not None:
            task = self._group.create_task(self._complain(standing, leaf), name=f"complaint to {standing.source.name}")
            self._complaints.add(task)
            task.add_done_callback(self._complained)

    async def complete(self, stage: Stage[Job]) -> NodeError | None:
        """None when nothing is wanted any more; else what ended it: what no source can mend, or the verdict when nobody
        can help."""
        self._schedule.renew()
        error: NodeError | None = None
        async with asyncio.TaskGroup() as self._group:
            try:
                while not stage.complete and error is None:
                    self._stir.clear()
                    self._hand_out(stage)
                    error = self._fatal
                    if error is None and not await self._wait(stage):
                        error = self._fatal or self._schedule.verdict(self._root)
                if error is None:
                    for standing, silence_s in stage.silent(self._now()).items():
                        self._schedule.overtaken(standing, self._root, silence_s)
                self._cancel_all()
                if self._complaints:
                    await asyncio.wait(self._complaints, timeout=COMPLAINT_S)
            finally:
                self._cancel_all()
                self._watches.clear()
                for task in self._complaints:
                    task.cancel()
        return self._fatal or error

    def _cancel_all(self) -> None:
        for tasks in (*self._jobs.values(), self._watches.values()):
            for task in tasks:
                task.cancel()

    def _hand_out(self, stage: Stage[Job]) -> None:
        assert self._group is not None
        now = self._now()
        for standing in self._schedule.standings:
            if standing not in self._watches:
                watch = self._group.create_task(stage.watch(standing), name=f"watch {standing.source.name}")
                self._watches[standing] = watch
            if standing.barred or standing.tired:
                stage.dismiss(standing)
        ready = list(self._schedule.ready(now))
        for standing in ready:
            lanes = stage.lanes(standing, len(ready))
            while standing.jobs < lanes and (job := stage.next(standing, now)) is not None:
                self._start(stage, standing, job, now)

    def _start(self, stage: Stage[Job], standing: Standing, job: Job, now: float) -> None:
        assert self._group is not None
        standing.begin(now)
        task = self._group.create_task(self._carry(stage, standing, job), name=f"from {standing.source.name}")
        self._jobs.setdefault(standing, set()).add(task)
        task.add_done_callback(partial(self._ended, stage, standing, job))

    def _ended(self, stage: Stage[Job], standing: Standing, job: Job, task: asyncio.Task[None]) -> None:
        standing.end(self._now())
        self._jobs[standing].discard(task)
        stage.release(job)
        self._stir.set()

    def _complained(self, task: asyncio.Task[None]) -> None:
        self._complaints.discard(task)
        self._stir.set()

    async def _carry(self, stage: Stage[Job], standing: Standing, job: Job) -> None:
        """A job; its failure goes to the schedule, never up."""
        try:
            await stage.carry(standing, job)
        except IntegrityError as exc:
            self._schedule.rejected(standing, exc)
            for task in self._jobs[standing]:
                if task is not asyncio.current_task():
                    task.cancel()
        except SourceUnavailable as exc:
            cid = Cid.parse(str(exc.detail.get("cid", self._root)))
            self._schedule.failed(standing, cid.canonical, exc, self._now())
        except NodeError as exc:
            self.fail(exc)

    async def _complain(self, standing: Standing, leaf: Leaf) -> None:
        try:
            async with asyncio.timeout(COMPLAINT_S):
                block = await standing.source.read_block(leaf.cid)
        except (NodeError, TimeoutError):
            return
        expected_bytes = len(leaf.prefix) + leaf.length + len(leaf.suffix)
        if len(block) != expected_bytes and await in_thread(leaf.cid.matches, block):
            self.fail(misdeclared(leaf, len(block)))

    async def _wait(self, stage: Stage[Job]) -> bool:
        """Until something may have changed. False if nobody works and nobody can be waited for."""
        now = self._now()
        rest_until = self._schedule.rests_until(now)
        working = any(self._jobs.values()) or bool(self._complaints)
        if not working and rest_until is None and not self._awaited(stage, now):
            return self._schedule.rouse()
        wait_s = TICK_S if len(self._schedule.standings) > 1 or not working else None
        if rest_until is not None:
            wait_s = min(rest_until - now, wait_s or rest_until - now)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stir.wait()
        return True

    def _awaited(self, stage: Stage[Job], now: float) -> bool:
        if self.sources_open or self._stir.is_set():
            return True
        return any(stage.awaits(standing, now) for standing in self._schedule.standings if not standing.barred)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def misdeclared(leaf: Leaf, size_bytes: int) -> BadContent:
    """A leaf whose bytes are right and not as many as its parent says: the DAG lies, no source can mend that."""
    expected_bytes = len(leaf.prefix) + leaf.length + len(leaf.suffix)
    return BadContent(
        f"block {leaf.cid} holds {size_bytes} bytes, not {expected_bytes} as its parent says", cid=str(leaf.cid)
    )
