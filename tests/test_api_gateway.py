"""`/ipfs/…`: blocks, CARs, files with ranges, directories; read-only, never rendered, nothing fetched."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from ipfs_accelerate_node.content.car import CarReader
from ipfs_accelerate_node.content.cid import RAW, Cid
from ipfs_accelerate_node.content.walk import DagWalk
from tests.support.running import Reply, Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
FILES = {
    "config.json": b'{"hidden_size": 384}',
    "weights.bin": random.Random(1).randbytes(3 * MIB + 17),
    "page.html": b"<script>alert(1)</script>",
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "empty": b"",
    "1_Pooling/config.json": b"{}",
    "sub dir/na%me é.txt": b"text",
}
ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@dataclass(frozen=True, slots=True)
class Stored:
    here: Running
    root: str

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return await self.here.ask(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def file(self, name: str, **headers: str) -> Reply:
        return await self.get(f"/ipfs/{self.root}/{name}", **headers)

    def cid(self, path: str) -> Cid:
        return self.here.node.store.resolve(Cid.parse(self.root), path)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stored(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stored]:
    folder = tmp_path_factory.mktemp("gateway")
    async with running(folder / "cache") as here:
        receipt = await here.node.add(write(folder / "model", FILES), name="model")
        yield Stored(here, receipt.root)


@pytest.mark.parametrize(("name", "content"), FILES.items())
async def test_every_file_comes_whole_and_is_never_rendered(stored: Stored, name: str, content: bytes) -> None:
    reply = await stored.file(quote(name))
    cid = str(stored.cid(name))
    assert (reply.status, reply.body) == (200, content)
    assert reply.headers["Content-Length"] == str(len(content))
    assert reply.headers["Etag"] == f'"{cid}"'
    assert reply.headers["X-Ipfs-Path"] == f"/ipfs/{stored.root}/{'/'.join(quote(p, safe='') for p in name.split('/'))}"
    assert reply.headers["X-Ipfs-Roots"].split(",")[0] == stored.root
    assert reply.headers["X-Ipfs-Roots"].split(",")[-1] == cid
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert reply.headers["Content-Disposition"].startswith("attachment;")
    assert "immutable" in reply.headers["Cache-Control"]
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    assert reply.headers["Content-Type"].startswith("text/plain" if name.endswith(".txt") else kind)
    head = await stored.get(f"/ipfs/{stored.root}/{quote(name)}", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(content))


SIZE = len(FILES["weights.bin"])
RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-", 0, SIZE),
    (f"bytes={MIB - 1}-{MIB}", MIB - 1, MIB + 1),
    (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    ("bytes=-1", SIZE - 1, SIZE),
    (f"bytes=-{SIZE + 5}", 0, SIZE),
    (f"bytes=5-{SIZE * 2}", 5, SIZE),
    (" bytes=7-9 ", 7, 10),
]


@pytest.mark.parametrize(("header", "start", "stop"), RANGES)
async def test_one_range(stored: Stored, header: str, start: int, stop: int) -> None:
    reply = await stored.file("weights.bin", Range=header)
    assert reply.status == 206
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert reply.body == FILES["weights.bin"][start:stop]


@pytest.mark.parametrize(
    "header", ["bytes=0-1,3-4", "bytes=5-1", "bytes=", "bytes=-", "bytes=a-b", "items=0-1", "bytes 0-1", "bytes=--1"]
)
async def test_ranges_that_are_not_served_are_ignored(stored: Stored, header: str) -> None:
    reply = await stored.file("weights.bin", Range=header)
    assert (reply.status, len(reply.body)) == (200, SIZE)


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", "bytes=-0", f"bytes={10**18}-{10**18 + 5}"])
async def test_a_range_behind_the_end(stored: Stored, header: str) -> None:
    reply = await stored.file("weights.bin", Range=header)
    assert (reply.status, reply.body) == (416, b"")
    assert reply.headers["Content-Range"] == f"bytes */{SIZE}"
    assert (await stored.file("empty", Range="bytes=0-")).status == 416


async def test_conditional_requests(stored: Stored) -> None:
    tag = f'"{stored.cid("weights.bin")}"'
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        reply = await stored.file("weights.bin", If_None_Match=header)
        assert (reply.status, reply.body) == (304, b"")
    assert (await stored.file("weights.bin", If_None_Match='"other"')).status == 200
    assert (await stored.file("weights.bin", Range="bytes=0-1", If_Range=tag)).status == 206
    assert (await stored.file("weights.bin", Range="bytes=0-1", If_Range='"other"')).status == 200


async def test_raw_blocks(stored: Stored) -> None:
    walk = DagWalk(Cid.parse(stored.root))
    asked = 0
    while wanted := walk.wanted(1):
        for form in ({"query": "?format=raw"}, {"Accept": "application/vnd.ipld.raw"}):
            query = form.pop("query", "")
            reply = await stored.get(f"/ipfs/{wanted[0]}{query}", **form)
            assert reply.status == 200
            assert reply.headers["Content-Type"] == "application/vnd.ipld.raw"
            wanted[0].check(reply.body, "test")
        walk.give(wanted[0], reply.body)
        asked += 1
    assert asked > 4
    plan = walk.plan()
    leaf = next(file for file in plan.files if file.path == "weights.bin").leaves[1]
    reply = await stored.get(f"/ipfs/{leaf.cid}?format=raw")
    assert reply.body == FILES["weights.bin"][MIB : 2 * MIB]
    assert (await stored.get(f"/ipfs/{leaf.cid}")).body == reply.body  # a leaf by itself is bytes too
    head = await stored.get(f"/ipfs/{leaf.cid}?format=raw", "HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(MIB), b"")


async def test_every_spelling_of_a_cid_means_the_same(stored: Stored) -> None:
    """C14, and an inline CID that needs no store (C10)."""
    file = stored.cid("config.json")
    for text in (f"f{bytes(file).hex()}", str(file).upper().replace("B", "B", 1)):
        reply = await stored.get(f"/ipfs/{text}")
        assert (reply.status, reply.headers["Etag"]) == (200, f'"{file}"')
    inline = Cid.of(b"inline bytes", RAW, 0)
    assert (await stored.get(f"/ipfs/{inline}?format=raw")).body == b"inline bytes"


async def test_car(stored: Stored) -> None:
    reply = await stored.get(f"/ipfs/{stored.root}?format=car")
    assert reply.headers["Content-Type"].startswith("application/vnd.ipld.car")
    roots, blocks = read_car(reply.body)
    assert [str(root) for root in roots] == [stored.root]
    walk = DagWalk(Cid.parse(stored.root))
    while wanted := walk.wanted(1):
        walk.give(wanted[0], blocks[wanted[0]])
    leaves = {leaf.cid for file in walk.plan().files for leaf in file.leaves}
    assert leaves <= set(blocks)
    for scope, count in (("block", 1), ("entity", 1)):
        reply = await stored.get(f"/ipfs/{stored.root}?format=car&dag-scope={scope}")
        assert len(read_car(reply.body)[1]) == count
    head = await stored.get(f"/ipfs/{stored.root}?format=car", "HEAD")
    assert (head.status, head.body) == (200, b"")


async def test_a_car_of_a_path_has_the_directories_on_the_way(stored: Stored) -> None:
    reply = await stored.get(f"/ipfs/{stored.root}/1_Pooling/config.json", Accept="application/vnd.ipld.car;version=1")
    roots, blocks = read_car(reply.body)
    assert roots == [stored.cid("1_Pooling/config.json")]
    assert list(blocks) == [Cid.parse(stored.root), stored.cid("1_Pooling"), stored.cid("1_Pooling/config.json")]


def read_car(body: bytes) -> tuple[list[Cid], dict[Cid, bytes]]:
    reader = CarReader()
    blocks = {cid.canonical: bytes(block) for cid, block in reader.feed(body)}
    reader.close()
    return list(reader.roots), blocks


async def test_a_directory_is_a_list_of_its_entries(stored: Stored) -> None:
    for path in (f"/ipfs/{stored.root}", f"/ipfs/{stored.root}/"):
        reply = await stored.get(path)
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.headers["Content-Disposition"].startswith("attachment")
        assert {entry["name"] for entry in reply.json["entries"]} == {name.split("/")[0] for name in FILES}
        assert reply.json["cid"] == stored.root


async def test_what_is_not_here(stored: Stored) -> None:
    absent = [ABSENT, f"{ABSENT}?format=raw", f"{ABSENT}?format=car", f"{ABSENT}/x"]
    for path in (*absent, *(f"{stored.root}/{name}" for name in ("no", "config.json/x", "1_Pooling/x", "CONFIG.JSON"))):
        reply = await stored.get(f"/ipfs/{path}")
        assert reply.status == 404, path
        assert reply.headers["Content-Type"] == "application/problem+json"
        cached = await stored.get(f"/ipfs/{path}", Cache_Control="only-if-cached")
        assert cached.status == 412, path
    assert (await stored.get(f"/ipfs/{stored.root}/config.json", Cache_Control="only-if-cached")).status == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/ipfs/nonsense", "invalid_cid"),
        ("/ipfs/bafkreez3itiri7ghbbf6lzej7paxyxy2qznpw", "digest_too_small"),
        (f"/ipfs/{'b' * 5000}", "invalid_path"),
        ("/ipfs/%00", "invalid_cid"),
        ("/ipfs/%ff", "invalid_path"),
        ("/ipfs/ROOT/../x", "invalid_path"),
        ("/ipfs/ROOT/%2e%2e/x", "invalid_path"),
        ("/ipfs/ROOT/%2e%2e%2fx", "invalid_path"),
        ("/ipfs/ROOT//config.json", "invalid_path"),
        ("/ipfs/ROOT/a%2fb", "invalid_path"),
        ("/ipfs/ROOT/config.json%00", "invalid_path"),
        ("/ipfs/ROOT/%c0%af", "invalid_path"),
        ("/ipfs/ROOT?format=tar", "format_unsupported"),
        ("/ipfs/ROOT?format=", "format_unsupported"),
        ("/ipfs/ROOT?format=car&dag-scope=world", "bad_request"),
    ],
)
async def test_paths_that_are_none(stored: Stored, path: str, code: str) -> None:
    """H12, table C over HTTP."""
    reply = await stored.get(path.replace("ROOT", stored.root))
    assert (reply.status, reply.json["code"]) == (400, code)


async def test_nothing_can_be_written(stored: Stored) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await stored.get(f"/ipfs/{stored.root}", method)).status == 405


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_what_is_private_is_not_there_for_others(tmp_path: Path, host: str) -> None:
    """Default 12. Another user of this machine is a stranger like one from the network."""
    shared, secret = b"in both" * 1000, b"in one" * 1000
    async with running(tmp_path / "cache", host=host, share=True) as here:
        public = (await here.node.add(write(tmp_path / "public", {"a": shared}))).root
        private = (await here.node.add(write(tmp_path / "private", {"a": shared, "b": secret}))).root
        here.node.store.set_public(Cid.parse(public), True)
        here.node.store.set_public(Cid.parse(private), False)
        leaf = here.node.store.resolve(Cid.parse(private), "b")
        for path in (private, f"{private}/b", f"{private}/a", f"{private}?format=car", str(leaf), f"{leaf}?format=raw",
                     f"{leaf}?format=car", f"{private}?format=raw"):  # fmt: skip
            assert (await here.ask("GET", f"/ipfs/{path}")).status == 404, path
            assert (await here.admin("GET", f"/ipfs/{path}")).status == 200, path
        peer = here.keys.create(["peer"])[1]
        assert (await here.ask("GET", f"/ipfs/{private}/b", key=peer)).status == 404
        assert (await here.ask("GET", f"/ipfs/{public}/a")).body == shared
        assert (await here.ask("GET", f"/api/have/{public}")).status == 200
        assert (await here.ask("GET", f"/api/have/{private}")).status == 404
        assert (await here.admin("GET", f"/api/have/{private}")).status == 200
        assert "private" in (await here.admin("GET", f"/ipfs/{private}/b")).headers["Cache-Control"]


async def test_paranoid_hashes_every_leaf_before_it_leaves(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", paranoid=True) as here:
        root = (await here.node.add(write(tmp_path / "model", FILES))).root
        for header, start, stop in RANGES:
            reply = await here.ask("GET", f"/ipfs/{root}/weights.bin", headers={"Range": header.strip()})
            assert reply.body == FILES["weights.bin"][start:stop]
        assert (await here.ask("GET", f"/ipfs/{root}/empty")).body == b""
        file = here.node.store.file(here.node.store.resolve(Cid.parse(root), "weights.bin"))
        assert file is not None
        flip(file.path, 5)
        reply = await here.ask("GET", f"/ipfs/{root}/weights.bin", headers={"Range": "bytes=0-9"})
        assert reply.status == 404
        assert reply.json["code"] in ("corrupt", "not_found")


async def test_paranoid_finds_the_leaves_of_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range costs the leaves it touches, also where the file is asked for by its own CID."""
    async with running(tmp_path / "cache", paranoid=True) as here:
        root = (await here.node.add(write(tmp_path / "model", FILES))).root
        store = here.node.store
        cid = store.resolve(Cid.parse(root), "weights.bin")
        read: list[str] = []
        block = store.block

        def counted(cid: Cid, *, public_only: bool = False) -> bytes | None:
            read.append(str(cid))
            return block(cid, public_only=public_only)

        monkeypatch.setattr(store, "block", counted)
        for path in (f"/ipfs/{cid}", f"/ipfs/{root}/weights.bin"):
            await here.ask("GET", path)
            read.clear()
            reply = await here.ask("GET", path, headers={"Range": "bytes=5-9"})
            assert reply.body == FILES["weights.bin"][5:10]
            assert len(set(read)) == (2 if "weights" in path else 1)  # the directory on the way, and the leaf


def flip(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o400)


async def test_a_corrupt_block_is_never_served_as_one(tmp_path: Path) -> None:
    """P6."""
    async with running(tmp_path / "cache") as here:
        root = (await here.node.add(write(tmp_path / "model", {"weights.bin": FILES["weights.bin"]}))).root
        store = here.node.store
        cid = store.resolve(Cid.parse(root), "weights.bin")
        plan, file = store.plan(Cid.parse(root)), store.file(cid)
        assert plan is not None
        assert file is not None
        flip(file.path, MIB + 3)
        assert (await here.ask("GET", f"/ipfs/{plan.files[0].leaves[0].cid}?format=raw")).status == 200
        assert (await here.ask("GET", f"/ipfs/{plan.files[0].leaves[1].cid}?format=raw")).status == 404
        assert (await here.ask("GET", f"/ipfs/{root}/weights.bin")).status == 404
