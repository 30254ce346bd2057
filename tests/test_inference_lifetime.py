"""From a registry's start to its end: loads that take too long, crash after crash, and no process left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import NotFound, Unavailable
from ipfs_accelerate_node.inference.model import ModelSpec
from ipfs_accelerate_node.inference.registry import Registry
from tests.support.models import tiny_model
from tests.support.workers import ended, gone, registry_in_its_task

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "tiny")


async def test_the_daemon_itself_imports_no_torch() -> None:
    code = "import sys, ipfs_accelerate_node.inference.registry; print({'torch', 'transformers'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=root, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.strip() == b"set()"


async def test_a_series_of_crashes_is_answered_at_once_until_the_next_try(directory: Path) -> None:
    async with registry_in_its_task() as registry:
        crashed: Unavailable | None = None
        for _ in range(3):
            try:
                model = await registry.load(ModelSpec("bafyflap", directory))
                os.kill(model.pid or 0, signal.SIGKILL)
                await ended(model.pid or 0)
                await registry.embed(model, ["the cat"])
            except Unavailable as exc:
                crashed = exc
        assert crashed is not None
        assert crashed.code == "worker_crashed"
        assert crashed.retry_after_s


async def test_loading_has_an_end(directory: Path) -> None:
    async with registry_in_its_task(load_timeout_s=0.05) as registry:
        with pytest.raises(Unavailable) as caught:
            await registry.load(ModelSpec("bafyslow", directory))
        assert caught.value.code == "load_timeout"
        assert registry.loaded() == []


async def test_leaving_ends_workers_and_answers_those_who_wait(directory: Path) -> None:
    async with registry_in_its_task() as registry:
        model = await registry.load(ModelSpec("bafyleft", directory))
        waiting = asyncio.create_task(registry.embed(model, ["the cat sat on " * 9] * 3000))
        await asyncio.sleep(0)
    with pytest.raises((NotFound, Unavailable)):
        await waiting
    assert gone(model.pid or 0)


async def test_a_prestarted_worker_is_taken_and_one_never_used_is_ended(directory: Path) -> None:
    async with Registry(threads=1) as registry:
        spare = registry._placing.spares["torch"]
        assert (await registry.load(ModelSpec("bafyspare", directory))).pid == spare.pid
    async with Registry(threads=1) as registry:
        pid = registry._placing.spares["torch"].pid
    assert gone(pid)


async def test_a_worker_dies_with_its_daemon(directory: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from ipfs_accelerate_node.inference.model import ModelSpec
from ipfs_accelerate_node.inference.registry import Registry

async def main():
    async with Registry(threads=1) as registry:
        print((await registry.load(ModelSpec("bafyx", Path({str(directory)!r})))).pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=Path(__file__).parent.parent, stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    pid = int(await daemon.stdout.readline())
    daemon.kill()
    await daemon.wait()
    await ended(pid)
