"""Finding nodes that have a root, and the tunnels to them, against real Kubo daemons."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Overloaded, SourceUnavailable, Unavailable
from ipfs_accelerate_node.kubo.service import KuboService
from ipfs_accelerate_node.peers.discovery import Discovery
from ipfs_accelerate_node.peers.network import Peers
from ipfs_accelerate_node.peers.protocol import PROTOCOL
from ipfs_accelerate_node.peers.source import TunnelSource
from ipfs_accelerate_node.peers.tunnels import Tunnels
from ipfs_accelerate_node.records.key import NodeKey
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.tunnels import STREAMS, await_door, mounts, way_to

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(120)]

US = NodeKey(b"us" + bytes(30))
ADD = ("add", "-Q", "-r", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--max-file-links=1024")


@dataclass(frozen=True, slots=True)
class Net:
    """Who announced root: node, a node; plain, a Kubo and nothing else; silent, one that can be stopped. ours: the
    daemon from which the test looks."""

    router: KuboDaemon
    node: NodeProcess
    node_id: str
    plain: KuboDaemon
    silent: KuboDaemon
    ours: KuboDaemon
    root: Cid


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    folder = tmp_path_factory.mktemp("net")
    (model := folder / "model").mkdir()
    (model / "weights.bin").write_bytes(random.Random(5).randbytes(2_500_000))
    (cache := folder / "node").mkdir(mode=0o700)
    dht = {**STREAMS, "Routing.Type": "dhtserver"}
    with KuboDaemon(folder / "router" / "repo", config=dht) as router:
        known = [router.addr]
        with (
            KuboDaemon(folder / "plain" / "repo", config=dht, bootstrap=known) as plain,
            KuboDaemon(folder / "silent" / "repo", config=dht, bootstrap=known) as silent,
            KuboDaemon(folder / "ours" / "repo", config=STREAMS, bootstrap=known) as ours,
            NodeProcess(cache, "--kubo", "managed", "--bootstrap", router.addr) as node,
        ):
            node.wait_for_kubo()
            root = node.json("add", str(model), "--announce")["root"]
            for daemon in (plain, silent):
                daemon.cli("swarm", "connect", router.addr)
                assert daemon.cli(*ADD, model) == root
                daemon.cli("routing", "provide", root)
            ours.cli("swarm", "connect", router.addr)
            node_id = node.request("GET", "/api/peer")["peer_id"]
            await_door(way_to(router, node_id))
            yield Net(router, node, node_id, plain, silent, ours, Cid.parse(root))


@asynccontextmanager
async def looking(net: Net, folder: Path, *, own: NodeKey = US) -> AsyncIterator[tuple[KuboService, Peers]]:
    service = KuboService(mode="external", cache=folder, ipfs_path=net.ours.repo)
    async with service, Peers(Config(cache=folder), service, own) as peers:
        await service.wait_ready(20)
        yield service, peers


async def found(discovery: Discovery | Peers, root: Cid) -> list[TunnelSource]:
    async with aclosing(discovery.providers(root)) as sources:
        return [source async for source in sources]


async def test_of_three_providers_the_one_that_runs_this_node(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, peers):
        (source,) = await found(peers, net.root)
        assert (source.name, source.kind) == (f"peer:{net.node_id}", "peer")
        held = await source.held(net.root)
        assert held is not None
        assert held.complete
        net.root.check(await source.read_block(net.root), source.name)
        await source.aclose()
        assert [t.peer_id for t in peers.tunnels.now()] == [net.node_id]
        assert len(await service.client.streams.mounts(PROTOCOL)) == 1  # those of the others are closed again
    assert mounts(net.ours) == []


async def test_one_that_hangs_delays_nobody(net: Net, tmp_path: Path) -> None:
    reach_s = 3.0
    async with looking(net, tmp_path) as (service, peers):
        discovery = Discovery(service, peers.tunnels, peers.source, own={US.peer_id}, reach_s=reach_s, search_s=5)
        os.kill(net.silent.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            times = []
            async with aclosing(discovery.providers(net.root)) as sources:
                async for source in sources:
                    times.append(time.monotonic() - began)
                    await source.aclose()
            took = time.monotonic() - began
        finally:
            os.kill(net.silent.pid, signal.SIGCONT)
        assert len(times) == 1
        assert times[0] < reach_s
        assert took < 5 + reach_s + 2
    assert mounts(net.ours) == []


async def test_what_is_no_node_is_not_asked_twice(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (_, peers):
        await found(peers, net.root)
        known = peers._discovery._not_nodes
        assert net.plain.peer_id in known
        assert net.node_id not in known
        assert [source.peer_id for source in await found(peers, net.root)] == [net.node_id]


async def test_this_node_itself_is_left_out(net: Net, tmp_path: Path) -> None:
    pem = (net.node.cache / "node.key").read_bytes()
    (tmp_path / "node.key").write_bytes(pem)
    (tmp_path / "node.key").chmod(0o600)
    async with looking(net, tmp_path, own=NodeKey.load_or_create(tmp_path / "node.key")) as (_, peers):
        assert await found(peers, net.root) == []


async def test_nobody_has_it(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (_, peers):
        assert await found(peers, Cid.of(b"nobody has this")) == []


async def test_without_kubo_nobody_is_found(tmp_path: Path) -> None:
    service = KuboService(mode="off", cache=tmp_path)
    async with service, Peers(Config(cache=tmp_path), service, US) as peers:
        assert await found(peers, Cid.of(b"x")) == []
        with pytest.raises(SourceUnavailable) as absent:
            await peers.source(US.peer_id).read_block(Cid.of(b"x"))
        assert absent.value.code == "kubo_unavailable"


async def test_who_stops_looking_leaves_nothing(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (_, peers):
        before = asyncio.all_tasks()
        async with aclosing(peers.providers(net.root)) as sources:
            await (await anext(sources)).aclose()
        assert asyncio.all_tasks() == before

        async def look() -> list[TunnelSource]:
            return await found(peers, net.root)

        for steps in range(1, 40, 3):  # cancelled at one await after the other
            task = asyncio.create_task(look())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert asyncio.all_tasks() == before
    assert mounts(net.ours) == []


# --- tunnels


async def test_a_tunnel_is_shared_closed_when_idle_and_opened_again(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, _):
        tunnels = Tunnels(service, idle_s=0)
        streams = service.client.streams
        urls = await asyncio.gather(*(tunnels.open(net.node_id) for _ in range(5)))
        assert len(set(urls)) == 1
        async with tunnels.using(net.node_id) as tunnel:
            assert (tunnel.url, tunnel.who.peer_id) == (urls[0], net.node_id)
            await tunnels.sweep()
            assert await streams.mounts(PROTOCOL) == [tunnel.mount]
        await tunnels.sweep()
        assert (tunnels.now(), await streams.mounts(PROTOCOL)) == ([], [])
        await tunnels.open(net.node_id)
        assert len(tunnels.now()) == 1
        await tunnels.aclose()
        assert (tunnels.now(), await streams.mounts(PROTOCOL)) == ([], [])


async def test_a_source_finds_its_way_again_after_somebody_closed_it(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (_, peers):
        await peers.tunnels.open(net.node_id)
        net.ours.cli("p2p", "close", "--all")
        source = peers.source(net.node_id)
        with pytest.raises(SourceUnavailable):
            await source.read_block(net.root)
        net.root.check(await source.read_block(net.root), source.name)
        await source.aclose()


async def test_cancelled_at_any_moment_it_leaves_no_port_open(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, _):
        tunnels = Tunnels(service)
        cut = 0
        for step in range(60):
            try:
                async with asyncio.timeout(step / 3000):
                    await tunnels.open(net.node_id)
            except TimeoutError:
                cut += 1
            assert set(await service.client.streams.mounts(PROTOCOL)) == {tunnel.mount for tunnel in tunnels.now()}
            await tunnels.aclose()
        assert cut > 3
    assert mounts(net.ours) == []


async def test_there_are_never_more_than_so_many(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, _):
        tunnels = Tunnels(service, limit=1)
        async with tunnels.using(net.node_id):
            with pytest.raises(Overloaded) as refused:
                await tunnels.open(net.plain.peer_id)
            assert refused.value.code == "too_many_tunnels"
        with pytest.raises(SourceUnavailable):  # the first one made room; this is no node
            await tunnels.open(net.plain.peer_id)
        assert tunnels.now() == []
        await tunnels.aclose()


async def test_an_unknown_peer_is_unreachable_soon(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, peers):
        with pytest.raises(Unavailable) as absent:
            await peers.tunnels.open(NodeKey(b"absent" + bytes(26)).peer_id, timeout_s=5)
        assert absent.value.code == "peer_unreachable"
        assert await service.client.streams.mounts(PROTOCOL) == []


async def test_a_source_finds_its_way_again_after_our_kubo_restarted(net: Net, tmp_path: Path) -> None:
    async with looking(net, tmp_path) as (service, peers):
        source = peers.source(net.node_id)
        block = await source.read_block(net.root)
        previous = service.client
        net.ours.stop()
        net.ours.start()
        net.ours.cli("swarm", "connect", net.router.addr)
        async with asyncio.timeout(60):
            while (await service.next_ready(previous)) is previous:
                pass
        assert await source.read_block(net.root) == block
        assert len(peers.tunnels.now()) == 1
        await source.aclose()
