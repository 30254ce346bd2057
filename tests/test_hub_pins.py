"""`pin hf:…` on a whole node: what a reference to a repository means, and what a private one never does."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.seeder import NOT_PUBLIC
from tests.support import kubo as fixtures
from tests.support.hub import FakeHub
from tests.support.node import NodeProcess

TOKEN = "hf_canary"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN]) as running:
        yield running


def node(tmp_path: Path, hub: FakeHub, *arguments: str) -> NodeProcess:
    (cache := tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
    return NodeProcess(cache, "--hf-upstream", hub.url, *arguments, env={"HF_TOKEN": TOKEN})


async def test_a_repository_is_found_without_a_revision_and_pinned_as_the_hub_has_it_now(
    tmp_path: Path, hub: FakeHub
) -> None:
    repo = hub.repo("org/model", {"config.json": b"{}"})

    def both() -> tuple[str, str, str]:
        with node(tmp_path, hub) as up:
            old = up.json("pin", "hf:org/model")["root"]
            assert up.json("info", "org/model")["model"]["root"] == old
            repo.commit({"config.json": b'{"new": 1}'})
            assert up.json("info", "hf:org/model")["model"]["root"] == old
            new = up.json("pin", "org/model")["root"]
            at_commit = up.json("pin", f"hf:org/model@{next(iter(repo.commits))}")
            assert at_commit["bytes_fetched"] == 0
            return old, new, at_commit["root"]

    old, new, again = await asyncio.to_thread(both)
    assert old == again != new


@pytest.mark.kubo
async def test_a_private_repository_is_never_handed_to_kubo_nor_to_a_stranger(tmp_path: Path, hub: FakeHub) -> None:
    files = {"config.json": b"{}", "weights.txt": bytes(2_000_000)}
    hub.repo("org/private", files, readers=frozenset([TOKEN]))

    def pinned_and_started_again() -> None:
        for announce in ([], ["--announce"]):
            with node(tmp_path, hub, "--kubo", "managed", "--bootstrap", "none") as up:
                up.wait_for_kubo()
                receipt = up.json("pin", "hf:org/private", *announce)
                assert (receipt["seeded"], receipt["seed_note"], receipt["announced"]) == (False, NOT_PUBLIC, False)
                root = Cid.parse(receipt["root"])
            listed = offline(up.cache / "kubo", "refs", "local").split()
            assert not {Cid.parse(line).multihash for line in listed} & {
                root.multihash,
                *(Cid.of(data).multihash for data in files.values()),
            }
            assert TOKEN not in up.log.read_text()

    await asyncio.to_thread(pinned_and_started_again)


def offline(repo: Path, *arguments: str) -> str:
    environment = {"IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off", "HOME": str(repo)}
    return subprocess.check_output([fixtures.kubo_binary(), "--offline", *arguments], env=environment, text=True)
