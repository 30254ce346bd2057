"""Registries and worker processes under a test's control."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
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
