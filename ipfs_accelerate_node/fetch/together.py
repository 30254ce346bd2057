"""Several pieces of work side by side, bounded; one failure ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from ipfs_accelerate_node.errors import NodeError

Work = Callable[[], Coroutine[Any, Any, None]]


async def together(works: Iterable[Work], at_once: int) -> None:
    """Begins them in order. Raises the first NodeError of any, once all others have been cancelled and have ended."""
    left: Iterator[Work] = iter(works)
    failures: list[NodeError] = []
    lanes: list[asyncio.Task[None]] = []

    async def lane() -> None:
        for work in left:
            try:
                await work()
            except NodeError as exc:
                failures.append(exc)
                for other in lanes:
                    if other is not asyncio.current_task():
                        other.cancel()
                return

    async with asyncio.TaskGroup() as group:
        lanes += [group.create_task(lane()) for _ in range(at_once)]
    if failures:
        raise failures[0]
