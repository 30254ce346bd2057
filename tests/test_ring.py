"""Five nodes in a ring, one of which has a model: those who are still fetching already feed the others."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.node import NodeProcess
from tests.support.pinning import MIB, Pinned, free_ports, pin, random_model, same_files
from tests.support.proxy import NONE, Proxy, Toxic

pytestmark = pytest.mark.timeout(400)

NODES = 5
MODEL_BYTES = (1024 if os.environ.get("IPFS_ACCELERATE_NODE_TEST_FULL") else 48) * MIB
FETCH_S = 240.0
TALK_BYTES = 64 << 10  # heads of answers, and what the seed says it has; less than 0.2 % of the model


@pytest.mark.parametrize("line", [NONE, Toxic(rate_bytes=10_000_000)], ids=["any rate", "10 MB/s a connection"])
async def test_the_seed_sends_at_most_twice_the_model(
    tmp_path: Path, figure: Callable[[str], None], line: Toxic
) -> None:
    """Everybody knows the next node and the one before; only the first has the model, all others ask at once. Whatever
    leaves the seed is counted in front of it. line: how fast that may be."""
    folder = random_model(tmp_path / "model", MODEL_BYTES)
    with free_ports(NODES) as ports:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with AsyncExitStack() as stack:
        counter = await stack.enter_async_context(Proxy(urls[0], line))
        known = [counter.url, *urls[1:]]
        nodes = []
        for number, port in enumerate(ports):
            (cache := tmp_path / f"node-{number}").mkdir(mode=0o700)
            neighbours = (known[(number + 1) % NODES], known[number - 1])
            arguments = ("--port", str(port), *(part for url in neighbours for part in ("--peer", url)))
            node = NodeProcess(cache, *arguments, "--allow-host", counter.url.removeprefix("http://"))
            nodes.append(stack.enter_context(node))
        root = nodes[0].json("add", str(folder))["root"]
        size_bytes = sum(p.stat().st_size for p in folder.iterdir())

        pins = (asyncio.to_thread(pin, node, root, timeout_s=FETCH_S) for node in nodes[1:])
        done: list[Pinned] = await asyncio.gather(*pins)

        for node, pinned in zip(nodes[1:], done, strict=True):
            assert pinned.receipt is not None, f"{json.dumps(pinned.error)}\n{node.tail()}"
            assert pinned.receipt["root"] == root
            assert same_files(Path(pinned.receipt["path"]), folder)
            assert all(share["rejected"] == 0 for share in pinned.receipt["sources"])
        figure(
            f"{NODES} nodes, {size_bytes / 1e6:.0f} MB: the seed sent {counter.sent / size_bytes:.3f} x the model, "
            f"the last was done after {max(p.seconds for p in done):.1f} s"
        )
        assert counter.sent <= 2 * size_bytes + TALK_BYTES
