"""The models that are in memory or on their way there: each in a slot with a task of its own, found by any of its
names, and ended when others need the room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.errors import BadRequest, Conflict
from ipfs_accelerate_node.inference.memory import proportional_bytes
from ipfs_accelerate_node.inference.model import ModelSpec
from ipfs_accelerate_node.inference.placing import Placing
from ipfs_accelerate_node.inference.slot import Limits, Slot
from ipfs_accelerate_node.inference.wanted import Wanted

log = logging.getLogger(__name__)


class Slots:
    """Async context manager; leaving it ends every worker at once. The settings are those of ``Registry``."""

    def __init__(
        self,
        limits: Limits,
        *,
        keep_alive_s: float,
        budget_bytes: int | None,
        available: Callable[[], int],
        gone: Callable[[str], None],
    ) -> None:
        self._limits = limits
        self._keep_alive_s = keep_alive_s
        self._budget_bytes = budget_bytes
        self._available = available
        self._gone = gone
        self._slots: dict[Slot, asyncio.Task[None]] = {}  # each with the task that owns it
        self._tasks = asyncio.TaskGroup()
        self._room = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for slot in list(self._slots):
                await slot.close(drain=False)
        finally:
            await self._tasks.__aexit__(kind, exc, traceback)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots))

    # -- finding

    def named(self, name: str, *, task: str | None = None) -> list[Slot]:
        """By root, name or alias: those meant by the alias first, then the ready ones, then the last used."""
        found = [slot for slot in self._slots if name in (slot.spec.root, slot.alias, *slot.names) and slot.does(task)]
        return sorted(found, key=lambda s: (s.alias != name, s.state != "ready", -s.last_used))

    async def matching(self, root: str, wanted: Wanted) -> Slot | None:
        """The slot that is what is wanted; waits for one on its way out to be gone, and for an undecided one."""
        while True:
            undecided: Slot | None = None
            for slot, owner in self._slots.items():
                if slot.spec.root != root:
                    continue
                match = slot.answers_to(wanted)
                if match and slot.state in ("draining", "absent"):
                    await asyncio.wait([owner])
                    break
                if match:
                    return slot
                undecided = undecided or (slot if match is None else None)
            else:
                if undecided is None:
                    return None
                await undecided.settled()
                if undecided.state == "absent" and undecided in self._slots:
                    await asyncio.wait([self._slots[undecided]])

    def call(self, slot: Slot, alias: str) -> None:
        """An alias means one loaded form of a model, also where there are several."""
        if other := next((o for o in self._slots if o.alias == alias and o is not slot), None):
            raise Conflict(f"{alias!r} is {other.spec.root} on {other.wanted.device}", name=alias)
        slot.alias = slot.alias or alias

    # -- coming and going

    def occupy(
        self, spec: ModelSpec, wanted: Wanted, names: tuple[str, ...], placing: Placing, *, thorough: bool
    ) -> Slot:
        if spec.path is None:
            raise BadRequest(f"{spec.root} has no files to load")
        slot = Slot(
            spec,
            wanted,
            names=names,
            place=partial(placing.place, thorough=thorough),
            limits=self._limits,
            keep_alive_s=self._keep_alive_s,
            pinned=False,
        )
        self._slots[slot] = self._tasks.create_task(self._own(slot), name=f"own model {spec.root}")
        return slot

    async def _own(self, slot: Slot) -> None:
        try:
            await slot.run()
        finally:
            del self._slots[slot]
            if not any(other.spec.root == slot.spec.root for other in self._slots):
                self._gone(slot.spec.root)

    async def end(self, slot: Slot) -> None:
        """Finish what is queued for it, as far as that goes in the time there is, then end its processes."""
        owner = self._slots.get(slot)
        if owner is None:
            return
        await slot.close(drain=True)
        done, _ = await asyncio.wait([owner], timeout=self._limits.drain_timeout_s)
        if not done:
            await slot.close(drain=False)
            await asyncio.wait([owner])
        log.info("unload.done root=%s", slot.spec.root)

    async def make_room(self, need_bytes: int, device: str, free: Callable[[], Awaitable[int]] | None = None) -> None:
        """Unload what was not used for longest, and is neither pinned nor at work, until so much is free.

        device: whose models may go. free: asks it for its free bytes; None: the machine's own memory counts.
        """
        async with self._room:
            while (self._free_bytes() if free is None else await free()) < need_bytes:
                host = not device.startswith("cuda")
                movable = [s for s in self._slots if s.idle and not s.pinned and s.on_host == host]
                if not movable:
                    return
                oldest = min(movable, key=lambda slot: slot.last_used)
                log.info("unload.for_room root=%s need_bytes=%d", oldest.spec.root, need_bytes)
                await self.end(oldest)
                if need_bytes > 1 << 60:
                    return

    def _free_bytes(self) -> int:
        free = self._available()
        if self._budget_bytes is None:
            return free
        taken = sum(proportional_bytes(slot.pid) for slot in self._slots if slot.pid is not None)
        return min(free, self._budget_bytes - taken)
