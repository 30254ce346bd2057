"""Gateways that lie, cut off or stall, seen from the command line: the exit code, the words, and what is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import FakeGateway, Fault, Flip, SmallModel, Stall, Truncate, small_model
from tests.support.node import NodeProcess

pytestmark = pytest.mark.timeout(120)

MODEL = small_model({"weights": bytes(range(256)) * 2, "config.json": b'{"model_type": "bert"}'})


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway(MODEL.blocks) as started:
        yield started


@pytest.fixture
def node(tmp_path: Path, gateway: FakeGateway) -> Iterator[NodeProcess]:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with NodeProcess(cache, "--gateway", gateway.url, "--stall-timeout-s", "1", "--first-byte-timeout-s", "1") as up:
        yield up


async def pin(node: NodeProcess, model: SmallModel) -> tuple[int, dict[str, Any], str]:
    done = await asyncio.to_thread(node.cli, "pin", str(model.root), "--json", check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def stored(cache: Path) -> list[str]:
    return sorted(p.name for folder in ("blobs", "models") for p in (cache / folder).iterdir())


async def test_one_wrong_byte_in_any_block(node: NodeProcess, gateway: FakeGateway) -> None:
    """In leaves and in node blocks alike: exit 4, naming the gateway and the CID, and nothing of it is kept.

    Each position has a model of its own: what an earlier failure left verified is not asked for again.
    """
    for position in range(len(MODEL.blocks)):
        model = small_model({path: bytes([position]) + data for path, data in MODEL.files.items()})
        victim = list(model.blocks)[position]
        gateway.blocks = dict(model.blocks)
        gateway.faults = {victim: Flip(at=len(model.blocks[victim]) // 2)}
        code, problem, words = await pin(node, model)
        assert (code, problem.get("code")) == (4, "hash_mismatch"), (position, problem)
        assert problem["cid"] == str(victim)
        assert gateway.url in problem["source"]
        assert str(victim) in words
        assert str(model.root) not in stored(node.cache)
    assert node.json("ls")["models"] == []


async def test_what_was_verified_is_kept_for_the_next_try(node: NodeProcess, gateway: FakeGateway) -> None:
    """Here all but leaves of the large file, which are asked for side by side."""
    weights = next(file for file in MODEL.plan.files if file.path == "weights")
    gateway.faults = {weights.leaves[-1].cid: Flip()}
    assert (await pin(node, MODEL))[0] == 4
    gateway.faults = {}
    gateway.asked.clear()
    code, receipt, _ = await pin(node, MODEL)
    assert (code, receipt["root"]) == (0, str(MODEL.root))
    assert gateway.asked.keys() <= {weights.cid, *(leaf.cid for leaf in weights.leaves)}
    for path, data in MODEL.files.items():
        assert (Path(receipt["path"]) / path).read_bytes() == data


@pytest.mark.parametrize(
    ("fault", "expected"), [(Truncate(after=5), "truncated"), (Stall(after=5), "stalled")], ids=["truncates", "stalls"]
)
async def test_cut_off_or_silent(node: NodeProcess, gateway: FakeGateway, fault: Fault, expected: str) -> None:
    victim = list(MODEL.leaves)[len(MODEL.leaves) // 2]
    gateway.faults = {victim: fault}
    code, problem, words = await pin(node, MODEL)
    assert (code, problem["code"]) == (5, expected)
    assert problem["cid"] == str(victim)
    assert gateway.url in problem["source"]
    assert gateway.url in words
    assert stored(node.cache) == [] or str(MODEL.root) not in stored(node.cache)
    gateway.faults = {}
    assert (await pin(node, MODEL))[0] == 0


async def test_unpin_stops_every_pin_under_way_in_any_spelling(tmp_path: Path, gateway: FakeGateway) -> None:
    (cache := tmp_path / "patient").mkdir(mode=0o700)
    gateway.faults = dict.fromkeys(MODEL.leaves, Stall(after=5))
    with NodeProcess(cache, "--gateway", gateway.url, "--stall-timeout-s", "100") as node:
        jobs = [
            await asyncio.to_thread(node.request, "POST", "/api/pins", {"ref": ref, "name": f"n{at}"})
            for at, ref in enumerate([str(MODEL.root), f"ipfs://{MODEL.root}"])
        ]
        stopped = await asyncio.to_thread(node.json, "unpin", f"/ipfs/{MODEL.root}")
        assert (stopped["root"], stopped["pinned"]) == (str(MODEL.root), False)
        for job in jobs:
            ended = await asyncio.to_thread(node.request, "GET", f"/api/pins/{job['id']}")
            assert (ended["state"], ended["error"]["code"]) == ("failed", "cancelled")
        gateway.faults = {}
        assert (await pin(node, MODEL))[0] == 0
