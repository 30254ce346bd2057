"""A worker whose start is given up half-way leaves nothing behind."""

from __future__ import annotations

import asyncio
import os

import pytest

from ipfs_accelerate_node.inference.process import WorkerProcess

pytestmark = pytest.mark.timeout(120)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_start_that_is_given_up_gives_back_what_it_took() -> None:
    worker = await WorkerProcess.start(threads=1, kind="openvino")  # what asyncio opens once is there from here on
    await worker.stop()
    before = descriptors()
    for steps in range(12):
        task = asyncio.ensure_future(WorkerProcess.start(threads=1, kind="openvino"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().stop()
        for _ in range(5):
            await asyncio.sleep(0)
        assert descriptors() == before, steps
