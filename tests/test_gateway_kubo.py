"""Against a real trustless gateway: Kubo's own."""

from __future__ import annotations

import random
from contextlib import aclosing
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.fetch import Fetcher
from ipfs_accelerate_node.sources import GatewaySource
from ipfs_accelerate_node.sources.source import Abilities
from ipfs_accelerate_node.store import Store
from tests.support import kubo
from tests.support.kubo import KuboDaemon, KuboFactory

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(60)]
kubo_factory = kubo.kubo_factory

MIB = 1 << 20
DATA = random.Random(9).randbytes(5 * MIB + 12345)
PROFILES = {
    "ours": ("--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024"),
    "Kubo's old default": ("--cid-version=0", "--raw-leaves=false"),
    "trickle": ("--cid-version=1", "--trickle"),
}


@pytest.fixture(scope="module")
def daemon(kubo_factory: KuboFactory) -> KuboDaemon:
    return kubo_factory(config={"Addresses.Gateway": "/ip4/127.0.0.1/tcp/0", "Gateway.NoFetch": True})


@pytest.fixture
def url(daemon: KuboDaemon) -> str:
    return (daemon.repo / "gateway").read_text().strip().rstrip("/")


@pytest.fixture(params=PROFILES)
def root(daemon: KuboDaemon, tmp_path: Path, request: pytest.FixtureRequest) -> Cid:
    (folder := tmp_path / "model").mkdir()
    (folder / "weights").write_bytes(DATA)
    (folder / "config.json").write_text("{}")
    return Cid.parse(daemon.cli("add", "-rQ", *PROFILES[request.param], folder).splitlines()[-1])


@pytest.fixture
async def plan(root: Cid, url: str, tmp_path: Path) -> FilePlan:
    """Of the weights, as a fetch by plain ranges sees it."""
    source = GatewaySource(url)
    with Store.open(tmp_path / "first") as store:
        fetched = await Fetcher(store).fetch(root, [source], reference="x")
        assert (fetched.model.path / "weights").read_bytes() == DATA
    await source.aclose()
    assert source.abilities.ranges is not False
    return next(file for file in fetched.plan.files if file.path == "weights")


async def test_ranges_and_cars_give_the_same_bytes(plan: FilePlan, url: str) -> None:
    size = len(DATA)
    for abilities in (Abilities(cars=False), Abilities(ranges=False)):
        source = GatewaySource(url, abilities=abilities)
        for start, stop in [(0, size), (0, 1), (MIB, 3 * MIB), (MIB + 1, MIB + 2), (size - 1, size)]:
            async with aclosing(source.read_range(plan, start, stop)) as pieces:
                assert b"".join([bytes(piece) async for piece in pieces]) == DATA[start:stop]
        assert (source.abilities.ranges, source.abilities.cars) in [(True, False), (False, True)]
        await source.aclose()


async def test_a_fetch_by_cars_alone(root: Cid, url: str, tmp_path: Path) -> None:
    source = GatewaySource(url, abilities=Abilities(ranges=False))
    with Store.open(tmp_path / "cache") as store:
        fetched = await Fetcher(store).fetch(root, [source], reference="x")
        assert (fetched.model.path / "weights").read_bytes() == DATA
    await source.aclose()
    # dag-pb leaves are seen by the walk only, block by block: nothing is left to ask for as a run
    assert source.abilities.cars is (True if root.version == 1 else None)


async def test_what_it_has_at_hand(root: Cid, url: str) -> None:
    source = GatewaySource(url)
    assert await source.cached(root) is True
    assert await source.cached(Cid.of(b"nobody has this block")) is False
    with pytest.raises(SourceUnavailable):
        await source.read_block(Cid.of(b"nobody has this block"))
    await source.aclose()
