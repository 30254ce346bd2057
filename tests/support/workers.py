"""Registries and worker processes under a test's control."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.inference.memory import proportional_bytes, resident_bytes
from ipfs_accelerate_node.inference.registry import Registry


@asynccontextmanager
async def registry_in_its_task(**settings: Any) -> AsyncIterator[Registry]:
    """A registry whose task group is entered and left by one task, as pytest's fixtures are not. settings: of
    Registry."""
    entered: asyncio.Future[Registry] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def own() -> None:
        async with Registry(threads=1, prestart=False, **settings) as registry:
            entered.set_result(registry)
            await leave.wait()

    owner = asyncio.create_task(own())
    try:
        yield await entered
    finally:
        leave.set()
        await owner


async def ended(pid: int) -> None:
    """Returns when the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, end.set)
    await end.wait()
    loop.remove_reader(descriptor)
    os.close(descriptor)


async def until(true: Callable[[], object]) -> None:
    """Returns when it is, after letting everybody else have their turn again and again."""
    passed = asyncio.get_running_loop().create_future()

    def look() -> None:
        if passed.done():
            return
        if true():
            passed.set_result(None)
        else:
            asyncio.get_running_loop().call_later(0.002, look)

    look()
    await passed


async def at_work(registry: Registry, name: str) -> frozenset[int]:
    """Returns the jobs that the model's worker is at, as soon as it is at any."""
    desk = registry._slots.named(name)[0]._desk
    await until(lambda: desk._worker is not None and desk._worker.struck())
    assert desk._worker is not None
    return desk._worker.struck()


def gone(pid: int) -> bool:
    return resident_bytes(pid) == 0


def tree_bytes(pid: int) -> int:
    """Memory of a process and its descendants, shared pages counted once (PSS)."""
    return proportional_bytes(pid) + sum(tree_bytes(child) for child in children(pid))


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found
