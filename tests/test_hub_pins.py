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


async def test_a_plan_of_a_repository_says_what_a_pin_of_it_does(tmp_path: Path, hub: FakeHub) -> None:
    """Files that are stored already, by whatever name, are here; only what the Hub alone has comes from it."""
    weights, other = bytes(range(256)) * 8192, b"other" * 1000
    hub.repo("org/first", {"config.json": b"{}", "weights.txt": weights})
    hub.repo("org/second", {"config.json": b'{"second": 1}', "model.txt": weights, "more.txt": other})

    def planned_and_pinned() -> None:
        with node(tmp_path, hub) as up:
            before = up.json("plan", "hf:org/first")
            assert (before["root"], before["stored"], before["bytes_to_fetch"]) == (None, False, len(weights) + 2)
            assert up.json("ls")["models"] == []
            root = up.json("pin", "hf:org/first")["root"]
            here = up.json("plan", "hf:org/first")
            assert (here["root"], here["bytes_to_fetch"], here["sources"]) == (root, 0, [])
            second = up.json("plan", "hf:org/second")
            assert [(s["kind"], s["complete"]) for s in second["sources"]] == [("hub", True)]
            assert second["bytes_here"] == len(weights)
            assert second["bytes_to_fetch"] == len(other) + len(b'{"second": 1}')
            receipt = up.json("pin", "hf:org/second")
            assert (receipt["bytes_here"], receipt["bytes_copied"]) == (second["bytes_here"], 0)
            assert receipt["bytes_fetched"] == second["bytes_to_fetch"]
            assert (Path(receipt["path"]) / "model.txt").read_bytes() == weights
            assert up.json("verify")["corrupt"] == []
            lost = up.cli("plan", "hf:org/nothing", "--json", check=False)
            assert lost.returncode == 3

    await asyncio.to_thread(planned_and_pinned)


async def test_a_private_file_does_not_become_public_by_its_hash(tmp_path: Path, hub: FakeHub) -> None:
    secret = b"private weights" * 1000
    hub.repo("org/private", {"w.txt": secret}, readers=frozenset([TOKEN]))
    hub.repo("org/public", {"w.txt": secret, "config.json": b"{}"})

    def pinned() -> None:
        with node(tmp_path, hub) as up:
            up.json("pin", "hf:org/private")
            receipt = up.json("pin", "hf:org/public")
            assert (receipt["bytes_here"], receipt["bytes_fetched"]) == (0, len(secret) + 2)

    await asyncio.to_thread(pinned)


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
