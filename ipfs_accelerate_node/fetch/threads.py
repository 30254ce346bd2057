"""Blocking work off the event loop, never left running behind a cancelled caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """work's result or exception, from a thread of the default executor.

    A thread cannot be cancelled, and what it uses (a file descriptor above all) must not be closed under it. So a
    cancelled caller waits for the thread to end before it raises CancelledError: keep work short.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, lambda: work(*args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        future.exception()  # the caller is gone; without this look asyncio would log it
        raise cancelled
    return future.result()
