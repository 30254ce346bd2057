"""What a node gives to others: while it is still fetching itself, within its limits, and never what is damaged."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
import pytest_asyncio

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch import Fetched, Fetcher
from ipfs_accelerate_node.sources import PeerSource
from ipfs_accelerate_node.store import Provenance, Store
from tests.support.gateway import SmallModel
from tests.support.running import Reply, Running, running
from tests.support.underway import BYTES, HERE, LEAF, MODEL, cid_of, coming, descriptors
from tests.test_api_gateway import flip, write

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
FROM = Provenance("cid", str(MODEL.root), "2026-01-01T00:00:00+00:00")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def halfway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("halfway") / "cache") as here:
        with coming(here.node.store, MODEL, HERE):
            yield here


EDGES = [0, 1, LEAF - 1, LEAF, LEAF + 1, 4 * LEAF - 1, 4 * LEAF, 4 * LEAF + 1, 7 * LEAF, 8 * LEAF - 1, 8 * LEAF,
         10 * LEAF - 1, 10 * LEAF, len(BYTES) - 1, len(BYTES)]  # fmt: skip


@pytest.mark.parametrize("path", ["{file}", "{root}/w.bin"])
async def test_a_range_of_a_file_under_way_comes_whole_or_not_at_all(halfway: Running, path: str) -> None:
    """Every pair of edges: at the ends of the file, of what is here and of leaves, and one byte beside each."""
    url = "/ipfs/" + path.format(file=cid_of("w.bin"), root=MODEL.root)
    for start, stop in combinations(EDGES, 2):
        reply = await halfway.ask("GET", url, headers={"Range": f"bytes={start}-{stop - 1}"})
        if all(leaf in HERE["w.bin"] for leaf in range(start // LEAF, (stop - 1) // LEAF + 1)):
            assert (reply.status, reply.body) == (206, BYTES[start:stop]), (start, stop)
            assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BYTES)}"
            assert reply.headers["Content-Length"] == str(stop - start)
        else:
            assert (reply.status, reply.json["code"]) == (404, "not_here_yet"), (start, stop)
            assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", None),
        (f"bytes={10 * LEAF}-", BYTES[10 * LEAF :]),
        (f"bytes={10 * LEAF}-{10**9}", BYTES[10 * LEAF :]),
        ("bytes=-5", BYTES[-5:]),
        ("bytes=-6", None),
        (f"bytes={len(BYTES)}-", None),
        (f"bytes={10**18}-", None),
        ("bytes=70-80,90-99", None),
    ],
)
async def test_other_ranges_of_a_file_under_way(halfway: Running, header: str | None, part: bytes | None) -> None:
    """Never 416, never a short body."""
    url = f"/ipfs/{cid_of('w.bin')}"
    headers = {} if header is None else {"Range": header}
    reply = await halfway.ask("GET", url, headers=headers)
    head = await halfway.ask("HEAD", url, headers=headers)
    if part is None:
        assert (reply.status, reply.json["code"], head.status) == (404, "not_here_yet", 404)
    else:
        assert (reply.status, reply.body) == (206, part)
        assert (head.status, head.body, head.headers["Content-Length"]) == (206, b"", str(len(part)))


async def test_a_file_that_is_all_here_comes_whole_before_it_is_stored(halfway: Running) -> None:
    reply = await halfway.ask("GET", f"/ipfs/{cid_of('config.json')}")
    assert (reply.status, reply.body) == (200, b"{}")


async def test_blocks_of_a_fetch_under_way(halfway: Running) -> None:
    for cid, block in MODEL.nodes.items():
        assert (await halfway.ask("GET", f"/ipfs/{cid}?format=raw")).body == block
    for file in MODEL.plan.files:
        for number, leaf in enumerate(file.leaves):
            reply = await halfway.ask("GET", f"/ipfs/{leaf.cid}?format=raw")
            if number in HERE[file.path]:
                assert (reply.status, reply.body) == (200, MODEL.leaves[leaf.cid.canonical])
            else:
                assert (reply.status, reply.json["code"]) == (404, "not_here_yet")


async def test_the_directories_of_a_fetch_under_way_can_be_listed(halfway: Running) -> None:
    reply = await halfway.ask("GET", f"/ipfs/{MODEL.root}")
    assert {entry["name"] for entry in reply.json["entries"]} == {"w.bin", "config.json", "sub"}
    assert (await halfway.ask("GET", f"/ipfs/{MODEL.root}/nothing")).json["code"] == "not_found"
    assert (await halfway.ask("GET", f"/ipfs/{MODEL.root}?format=car")).json["code"] == "not_here_yet"


async def test_what_is_here_of_a_root_under_way(halfway: Running) -> None:
    told = (await halfway.ask("GET", f"/api/have/{MODEL.root}")).json
    assert (told["root"], told["complete"]) == (str(MODEL.root), False)
    for file in MODEL.plan.files:
        (entry,) = [e for e in told["files"] if e["path"] == file.path]
        assert (entry["cid"], entry["leaves"]) == (str(file.cid), len(file.leaves))
        bitmap = base64.b64decode(entry["bitmap"])
        assert len(bitmap) == (len(file.leaves) + 7) // 8
        assert {n for n in range(8 * len(bitmap)) if bitmap[n // 8] >> n % 8 & 1} == HERE[file.path]


async def test_our_own_client_gets_from_a_node_under_way(halfway: Running) -> None:
    peer = PeerSource(halfway.url)
    try:
        held = await peer.held(MODEL.root)
        assert held is not None
        assert not held.complete
        assert [held.has(cid_of("w.bin"), n) for n in range(11)] == [n in HERE["w.bin"] for n in range(11)]
        plan = next(file for file in MODEL.plan.files if file.path == "w.bin")
        pieces = [bytes(piece) async for piece in peer.read_range(plan, LEAF, 4 * LEAF)]
        assert b"".join(pieces) == BYTES[LEAF : 4 * LEAF]
    finally:
        await peer.aclose()


# who sees it


async def asked_by(here: Running, who: str, path: str, **headers: str) -> Reply:
    key = {"stranger": None, "admin": here.key}.get(who) if who != "peer" else here.keys.create(["peer"])[1]
    return await here.ask("GET", path, key=key, headers=headers)


def forms(model: SmallModel) -> Sequence[tuple[str, dict[str, str]]]:
    """Every way to a piece of w.bin, which is here."""
    file = cid_of("w.bin", model)
    leaf = next(f for f in model.plan.files if f.path == "w.bin").leaves[1].cid
    wanted = {"Range": f"bytes={LEAF}-{LEAF + 9}"}
    return [
        (f"/api/have/{model.root}", {}),
        (f"/ipfs/{model.root}", {}),
        (f"/ipfs/{model.root}?format=raw", {}),
        (f"/ipfs/{model.root}/w.bin", wanted),
        (f"/ipfs/{file}", wanted),
        (f"/ipfs/{file}?format=raw", {}),
        (f"/ipfs/{leaf}", {}),
        (f"/ipfs/{leaf}?format=raw", {}),
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("who", ["stranger", "peer", "admin"])
async def test_only_public_fetches_feed_strangers(tmp_path: Path, host: str, public: bool, who: str) -> None:
    async with running(tmp_path / "cache", host=host, share=True) as here:
        with coming(here.node.store, MODEL, HERE, public=public):
            for path, headers in forms(MODEL):
                reply = await asked_by(here, who, path, **headers)
                seen = public or who == "admin"
                assert reply.status in ((200, 206) if seen else (404,)), path
                if not seen:  # as for what is not here at all: not even that it is on its way
                    assert reply.json["code"] == "not_found", path


async def test_the_upgrade_of_a_private_model_is_private(tmp_path: Path) -> None:
    """A public fetch of a root that is here as a private model's: by root, so all of it stays private."""
    async with running(tmp_path / "cache") as here:
        store = here.node.store
        with coming(store, MODEL, HERE, public=False) as parts:
            for file in MODEL.plan.files:
                for leaf in file.leaves:
                    parts[file.path].write(leaf, MODEL.leaves[leaf.cid.canonical])
                parts[file.path].commit(file)
        store.commit(MODEL.plan, MODEL.nodes.items(), public=False, provenance=FROM)
        arriving = store.underway.announce(MODEL.plan, MODEL.nodes.items(), public=True)
        for path, headers in forms(MODEL):
            assert (await asked_by(here, "stranger", path, **headers)).status == 404, path
            assert (await asked_by(here, "admin", path, **headers)).status in (200, 206), path
        store.set_public(MODEL.root, True)
        for path, headers in forms(MODEL):
            assert (await asked_by(here, "stranger", path, **headers)).status in (200, 206), path
        store.underway.withdraw(arriving)


async def test_a_leaf_of_a_private_file_is_not_there_before_it_was_brought_for_the_public_one(tmp_path: Path) -> None:
    """Default 12. That it is here already is nobody's business."""
    async with running(tmp_path / "cache") as here:
        store = here.node.store
        secret = (await here.node.add(write(tmp_path / "private", {"a": BYTES[:LEAF]}))).root
        store.set_public(Cid.parse(secret), False)
        leaf = next(file for file in MODEL.plan.files if file.path == "w.bin").leaves[0]
        assert store.block(leaf.cid) == BYTES[:LEAF]
        with coming(store, MODEL, HERE) as parts:
            raw = f"/ipfs/{leaf.cid}?format=raw"
            assert (await here.ask("GET", raw)).json["code"] == "not_here_yet"
            parts["w.bin"].write(leaf, BYTES[:LEAF])
            assert (await here.ask("GET", raw)).body == BYTES[:LEAF]
        assert (await here.ask("GET", raw)).json["code"] == "not_found"


# while it changes


@dataclass
class Held:
    """A source that stops before each leaf of a file of several until it is told to go on."""

    blocks: Mapping[Cid, bytes]
    name: str = "http://held.example"
    kind: str = "gateway"
    ranges: bool = False
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_block(self, cid: Cid) -> bytes:
        if any(cid.canonical == leaf.cid.canonical for f in MODEL.plan.files for leaf in f.leaves[: len(f.leaves) - 1]):
            self.waiting.set()
            await self.steps.acquire()
        return self.blocks[cid.canonical]

    async def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        raise AssertionError("it has no ranges")
        yield b""

    async def held(self, root: Cid) -> None:
        return None

    async def settled(self, cids: Sequence[Cid]) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def test_from_the_first_leaf_to_the_stored_model(tmp_path: Path) -> None:
    """A real fetch beside a reader: what the bitmap says is there is served, at every step, right to the end."""
    async with running(tmp_path / "cache") as here:
        source = Held(MODEL.blocks)
        fetcher = Fetcher(here.node.store)
        fetch = asyncio.create_task(fetcher.fetch(MODEL.root, [source], reference=str(MODEL.root)))
        async with asyncio.timeout(10):
            await source.waiting.wait()
        counts = [await served_of(here)]
        while not fetch.done():
            source.steps.release()
            counts.append(await served_of(here))
        await fetch
        assert counts == sorted(counts)
        assert counts[0] < sum(file.size for file in MODEL.plan.files)
        told = (await here.ask("GET", f"/api/have/{MODEL.root}")).json
        assert told["complete"]
        assert (await here.ask("GET", f"/ipfs/{cid_of('w.bin')}")).body == BYTES
    assert not descriptors(tmp_path / "cache")


async def served_of(here: Running) -> int:
    """Bytes of the leaves that the bitmap names; each is asked for and must come."""
    told = await here.ask("GET", f"/api/have/{MODEL.root}")
    total = 0
    for file, entry in zip(MODEL.plan.files, told.json["files"], strict=True):
        bitmap = base64.b64decode(entry["bitmap"])
        for number, leaf in enumerate(file.leaves):
            if bitmap[number // 8] >> number % 8 & 1:
                wanted = {"Range": f"bytes={leaf.offset}-{leaf.offset + leaf.length - 1}"}
                reply = await here.ask("GET", f"/ipfs/{file.cid}", headers=wanted)
                assert (reply.status, reply.body) == (206, MODEL.leaves[leaf.cid.canonical])
                total += leaf.length
    return total


async def test_an_incomplete_model_says_what_it_lacks(tmp_path: Path) -> None:
    """Also while a later fetch brings the rest: what was here is served, what is not is 404, and the bitmap grows."""
    async with running(tmp_path / "cache") as here:
        store = here.node.store
        here_now = {"w.bin": set(range(11)), "config.json": {0}, "sub/v.bin": set[int]()}
        with coming(store, MODEL, here_now) as parts:
            for file in MODEL.plan.files:
                if here_now[file.path]:
                    parts[file.path].commit(file)
        kept = frozenset({"w.bin", "config.json"})
        store.commit(MODEL.plan, MODEL.nodes.items(), provenance=FROM, paths=kept)
        absent = f"/ipfs/{MODEL.root}/sub/v.bin"
        assert await held_by(here) == (False, here_now)
        assert (await here.ask("GET", f"/ipfs/{MODEL.root}/w.bin")).body == BYTES
        assert (await here.ask("GET", absent)).status == 404
        with coming(store, MODEL, {"w.bin": set(), "config.json": set(), "sub/v.bin": {1}}):
            assert await held_by(here) == (False, {**here_now, "sub/v.bin": {1}})
            part = await here.ask("GET", absent, headers={"Range": f"bytes={LEAF}-{2 * LEAF - 1}"})
            assert (part.status, part.body) == (206, MODEL.files["sub/v.bin"][LEAF : 2 * LEAF])
            assert (await here.ask("GET", absent)).json["code"] == "not_here_yet"


async def held_by(here: Running) -> tuple[bool, dict[str, set[int]]]:
    told = (await here.ask("GET", f"/api/have/{MODEL.root}")).json
    found = {}
    for entry in told["files"]:
        bitmap = base64.b64decode(entry["bitmap"])
        found[entry["path"]] = {n for n in range(8 * len(bitmap)) if bitmap[n // 8] >> n % 8 & 1}
    return told["complete"], found


async def test_paranoid_hashes_what_is_under_way_too(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", paranoid=True) as here:
        with coming(here.node.store, MODEL, HERE):
            url = f"/ipfs/{cid_of('w.bin')}"
            reply = await here.ask("GET", url, headers={"Range": f"bytes={LEAF + 3}-{3 * LEAF + 3}"})
            assert (reply.status, reply.body) == (206, BYTES[LEAF + 3 : 3 * LEAF + 4])
            flip(tmp_path / "cache" / "partial" / str(cid_of("w.bin")), LEAF + 5)
            reply = await here.ask("GET", url, headers={"Range": f"bytes={LEAF + 3}-{3 * LEAF + 3}"})
            assert (reply.status, reply.json["code"]) == (404, "corrupt")


async def test_a_complaint_takes_a_damaged_file_out_of_the_store(tmp_path: Path) -> None:
    """P6: a range of it is wrong once; the raw block that its receiver asks for then is hashed here."""
    async with running(tmp_path / "cache") as here:
        root = (
            await here.node.add(write(tmp_path / "model", {"w.bin": random.Random(7).randbytes(3 * MIB), "a": b"a"}))
        ).root
        store = here.node.store
        plan = store.plan(Cid.parse(root))
        assert plan is not None
        file = next(file for file in plan.files if file.path == "w.bin")
        stored = store.file(file.cid)
        assert stored is not None
        flip(stored.path, MIB + 9)
        wanted = {"Range": f"bytes={MIB}-{2 * MIB - 1}"}
        wrong = await here.ask("GET", f"/ipfs/{file.cid}", headers=wanted)
        assert wrong.status == 206
        assert not file.leaves[1].cid.matches(wrong.body)
        assert (await here.ask("GET", f"/ipfs/{file.leaves[1].cid}?format=raw")).status == 404
        assert store.file(file.cid) is None
        assert [label.root for label in store.damaged()] == [Cid.parse(root)]
        assert list((tmp_path / "cache" / "quarantine").iterdir())
        for path in (f"/ipfs/{file.cid}", f"/ipfs/{root}/w.bin", f"/api/have/{root}"):
            assert (await here.ask("GET", path, headers=wanted)).status == 404


async def test_a_second_peer_supplies_what_the_first_one_has_damaged(tmp_path: Path) -> None:
    content = {"w.bin": random.Random(8).randbytes(4 * MIB + 3), "a": b"a"}
    async with running(tmp_path / "bad") as bad, running(tmp_path / "good") as good:
        root = Cid.parse((await bad.node.add(write(tmp_path / "model", content))).root)
        assert (await good.node.add(tmp_path / "model")).root == str(root)
        cid = bad.node.store.resolve(root, "w.bin")
        stored = bad.node.store.file(cid)
        assert stored is not None
        flip(stored.path, MIB + 9)
        with Store.open(tmp_path / "third") as store:
            with pytest.raises(NodeError):
                await fetched_from(store, root, bad)
            assert bad.node.store.file(cid) is None
            assert (await bad.ask("GET", f"/ipfs/{cid}", headers={"Range": "bytes=0-9"})).status == 404
            fetched = await fetched_from(store, root, bad, good)
            assert (fetched.model.path / "w.bin").read_bytes() == content["w.bin"]
        assert good.node.store.file(cid) is not None


async def fetched_from(store: Store, root: Cid, *nodes: Running) -> Fetched:
    peers = [PeerSource(node.url) for node in nodes]
    try:
        return await Fetcher(store).fetch(root, peers, reference=str(root))
    finally:
        for peer in peers:
            await peer.aclose()
