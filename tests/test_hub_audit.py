"""Two strangers take the same commit: one root, the same CIDs; `audit` confirms a true map and refuses a forged one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipfs_accelerate_node.content.build import CHUNK_BYTES, Profile, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.dag_bytes import dag_bytes
from ipfs_accelerate_node.content.plan import Leaf
from ipfs_accelerate_node.fetch.hub_claims import MapAnswer
from ipfs_accelerate_node.fetch.hub_maps import mapped_root
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.records.hub_map import HubMap, MappedFile
from ipfs_accelerate_node.sources.hub_names import HubRepo, is_hidden
from tests.support.hub import FakeHub
from tests.support.maps import LIAR, another_map, liar
from tests.support.node import COMMAND, environment
from tests.support.running import Running, running

TOKEN = "hf_canaryCanaryCanary"
FILES = {
    "config.json": b'{"a": 1}',
    "sub/weights.bin": bytes(range(256)) * 8_000,
    "sub/vocab.txt": b"a\nb\n",
    ".gitattributes": b"hidden",
}
REF = "hf:org/open"
REPO = HubRepo("org/open")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset([TOKEN]))
        yield fake


@pytest.fixture
async def first(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Running]:
    (cache := tmp_path / "first").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node)
        yield node


async def pinned(node: Running, ref: str = REF) -> str:
    job = node.node.start_pin(ref, Wish())
    async for now in node.node.updates(job):
        job = now
    assert job.state == "pinned", job.error
    assert job.root is not None
    return job.root


async def audited(node: Running, **asked: Any) -> dict[str, Any]:
    reply = await node.admin("POST", "/api/audit", json={"ref": REF, **asked})
    assert reply.status == 200, reply.body
    said: dict[str, Any] = reply.json
    return said


async def map_of(node: Running) -> MapAnswer:
    reply = await node.ask("GET", "/api/maps?repo=org/open")
    assert reply.status == 200
    return msgspec.json.decode(reply.body, type=MapAnswer)


async def test_two_strangers_get_the_same_root_and_confirm_each_other(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with running(cache, hf_upstream=hub.url) as second:
        root = await pinned(second)
        ours, theirs = [(await map_of(node)).maps[0].open(now=None) for node in (first, second)]
        assert str(ours.map.root) == str(theirs.map.root) == root
        assert ours.map.files == theirs.map.files
        assert {ours.signer, theirs.signer} == {first.node.key.peer_id, second.node.key.peer_id}
        assert [file.path for file in ours.map.files] == sorted(FILES)
        said = await audited(second, peer=first.url)
        assert (said["outcome"], said["tree"], said["own"], said["root"]) == ("confirmed", "hub", False, root)
        assert (said["signer"], said["commit"]) == (first.node.key.peer_id, sha)
        assert (said["files"], said["checked"]) == (len(FILES), ours.map.known)
        mine = await audited(second)
        assert (mine["outcome"], mine["own"], mine["signer"]) == ("confirmed", True, second.node.key.peer_id)
        handed = await audited(second, answer=msgspec.to_builtins(await map_of(first)))
        assert (handed["outcome"], handed["signer"]) == ("confirmed", first.node.key.peer_id)
        by_cid = await audited(second, map=mine["envelope_cid"])
        assert by_cid == mine


async def test_offline_the_shelf_says_what_the_hub_said(cache: Path, hub: FakeHub, first: Running) -> None:
    async with running(cache, hf_upstream=hub.url) as second:
        await pinned(second)
    hub.seen.clear()
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as second:
        said = await audited(second, peer=first.url)
        assert (said["outcome"], said["tree"]) == ("confirmed", "shelf")
    async with running(cache.parent / "stranger", hf_upstream=hub.url, hf_offline=True) as stranger:
        reply = await stranger.admin("POST", "/api/audit", json={"ref": REF, "peer": first.url})
        assert (reply.status, reply.json["exit_code"]) == (503, 5)
    assert hub.seen == []


async def test_bytes_that_are_not_here_are_fetched_or_said_to_be_lacking(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    hub.seen.clear()
    async with running(cache, hf_upstream=hub.url) as second:
        said = await audited(second, peer=first.url)
        assert (said["outcome"], said["path"], said["checked"]) == ("unchecked", "config.json", 0)
        said = await audited(second, peer=first.url, fetch=True)
        assert (said["outcome"], said["checked"]) == ("confirmed", len(FILES) - 1)
        assert [seen for seen in hub.seen if "/resolve/" in seen.path] == []


def changed(found: HubMap, path: str, **how: Any) -> tuple[MappedFile, ...]:
    return tuple(dataclasses.replace(file, **how) if file.path == path else file for file in found.files)


def rooted(found: HubMap, files: tuple[MappedFile, ...]) -> HubMap:
    """With the root that these files make."""
    root = mapped_root(file for file in files if not is_hidden(file.path))
    return dataclasses.replace(found, files=files, root=root)


def wrong_cid(found: HubMap) -> HubMap:
    return rooted(found, changed(found, "sub/vocab.txt", cid=Cid.of(b"c\nd\n")))


def wrong_cid_under_the_true_root(found: HubMap) -> HubMap:
    return dataclasses.replace(found, files=changed(found, "sub/vocab.txt", cid=Cid.of(b"c\nd\n")))


def swapped(found: HubMap) -> HubMap:
    """Two files have each other's CIDs."""
    cids = {file.path: file.cid for file in found.files}
    files = changed(found, "config.json", cid=cids["sub/vocab.txt"])
    return rooted(found, changed(dataclasses.replace(found, files=files), "sub/vocab.txt", cid=cids["config.json"]))


def swapped_wholly(found: HubMap) -> HubMap:
    """Two files have each other's places."""
    by_path = {file.path: file for file in found.files}
    one, other = by_path["config.json"], by_path["sub/vocab.txt"]
    by_path["config.json"] = dataclasses.replace(other, path="config.json")
    by_path["sub/vocab.txt"] = dataclasses.replace(one, path="sub/vocab.txt")
    return rooted(found, tuple(by_path[path] for path in sorted(by_path)))


def wrong_root(found: HubMap) -> HubMap:
    return dataclasses.replace(found, root=Cid.of(b"another directory", 0x70))


def missing(found: HubMap) -> HubMap:
    return rooted(found, tuple(file for file in found.files if file.path != "sub/vocab.txt"))


def extra(found: HubMap) -> HubMap:
    more = MappedFile("evil.py", 4, Cid.of(b"evil").digest.hex(), Cid.of(b"evil"))
    return rooted(found, tuple(sorted((*found.files, more), key=lambda file: file.path)))


def hidden_in_the_root(found: HubMap) -> HubMap:
    files = changed(found, ".gitattributes", cid=Cid.of(b"hidden"))
    return dataclasses.replace(found, files=files, root=mapped_root(files))


def other_size(found: HubMap) -> HubMap:
    return rooted(found, changed(found, "config.json", size=9))


def a_leaf_for_a_large_file(found: HubMap) -> HubMap:
    return rooted(found, changed(found, "sub/weights.bin", cid=Cid.of(b"one leaf")))


FORGERIES: list[tuple[Callable[[HubMap], HubMap], str | None, str]] = [
    (wrong_cid, "sub/vocab.txt", "its bytes have the CID"),
    (wrong_cid_under_the_true_root, None, "its files make the root"),
    (swapped, "config.json", "its bytes have the CID"),
    (swapped_wholly, "config.json", "it has 8 bytes, not 4"),
    (wrong_root, None, "its files make the root"),
    (missing, "sub/vocab.txt", "the commit has this file, the map has not"),
    (extra, "evil.py", "the map has this file, the commit has not"),
    (hidden_in_the_root, ".gitattributes", "this hidden file is in its root"),
    (other_size, "config.json", "it has 8 bytes, not 9"),
    (a_leaf_for_a_large_file, "sub/weights.bin", "is no CID that a file of 2048000 bytes has"),
]


@pytest.mark.parametrize(("forgery", "path", "reason"), FORGERIES)
async def test_a_forged_map_is_refused_with_what_is_wrong(
    first: Running, forgery: Callable[[HubMap], HubMap], path: str | None, reason: str
) -> None:
    async with liar(first, another_map(forgery)) as url:
        said = await audited(first, peer=url)
        assert (said["outcome"], said["path"], said["signer"]) == ("refused", path, LIAR.peer_id)
        assert said["reason"].startswith(reason) or reason in said["reason"]
        maps = first.node.maps.claims.maps
        assert maps.refuted()[LIAR.peer_id].reason == said["reason"]
        assert (await audited(first))["outcome"] == "confirmed"  # its own is as good as before


async def cli(node: Running, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout."""
    done = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        "--url",
        node.url,
        env={**environment(node.node.config.cache), "IPFS_ACCELERATE_NODE_KEY": node.key},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await done.communicate()
    assert done.returncode is not None
    return done.returncode, said.decode()


@pytest.mark.timeout(60)
async def test_on_the_command_line(first: Running, hub: FakeHub, tmp_path: Path) -> None:
    code, said = await cli(first, "audit", REF)
    assert code == 0
    assert "CONFIRMED" in said
    async with liar(first, another_map(wrong_cid)) as url:
        code, said = await cli(first, "audit", REF, "--peer", url)
        assert code == 4
        assert "REFUSED" in said
        assert "sub/vocab.txt: its bytes have the CID" in said
    (file := tmp_path / "map.json").write_bytes(msgspec.json.encode(another_map(wrong_root)(await map_of(first))))
    code, said = await cli(first, "audit", REF, "--map", str(file), "--json")
    assert (code, json.loads(said)["outcome"]) == (4, "refused")
    (cache := tmp_path / "stranger").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as stranger:
        code, said = await cli(stranger, "audit", REF, "--peer", first.url)
        assert code == 5
        assert "UNCHECKED" in said
        code, said = await cli(stranger, "audit", REF, "--peer", first.url, "--fetch")
        assert (code, "3 of 4 files" in said) == (0, True)


async def test_a_map_of_another_commit_and_one_whose_signature_is_wrong(first: Running) -> None:
    answer = another_map(lambda found: dataclasses.replace(found, commit="0" * 40))(await map_of(first))
    said = await audited(first, answer=msgspec.to_builtins(answer))
    assert said["outcome"] == "refused"
    assert "it is of org/open@000" in said["reason"]
    true = await map_of(first)
    broken = msgspec.structs.replace(true.maps[0], envelope=true.maps[0].envelope[:-1] + b"\0")
    whole = msgspec.to_builtins(msgspec.structs.replace(true, maps=[broken]))
    reply = await first.admin("POST", "/api/audit", json={"ref": REF, "answer": whole})
    assert (reply.status, reply.json["exit_code"]) == (502, 4)


async def test_a_lie_that_leads_to_real_bytes_is_found_by_fetching_them(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    """Nothing of it stays."""
    added = cache.parent / "forged"
    (added / "sub").mkdir(parents=True)
    for path, content in FILES.items():
        if not path.startswith("."):
            (added / path).write_bytes(content if path != "sub/vocab.txt" else b"c\nd\n")
    root = (await first.node.add(added, name="forged")).root
    async with (
        liar(first, another_map(wrong_cid)) as url,
        running(cache, hf_upstream=hub.url) as second,
    ):
        said = await audited(second, peer=url, fetch=True)
        assert (said["outcome"], said["root"], said["path"]) == ("refused", root, "sub/vocab.txt")
        assert "have the oid" in said["reason"]
        assert second.node.models() == []


async def test_what_is_asked_wrongly_or_is_not_there(cache: Path, hub: FakeHub, first: Running) -> None:
    async def refused(**asked: Any) -> tuple[int, str]:
        reply = await first.admin("POST", "/api/audit", json=asked)
        return reply.status, reply.json["code"]

    assert await refused(ref=str(Cid.of(b"x"))) == (400, "bad_request")
    assert await refused(ref=REF, peer="ftp://x") == (400, "bad_request")
    assert await refused(ref=REF, peer=first.url, map=str(Cid.of(b"x"))) == (400, "bad_request")
    assert await refused(ref=REF, map="x") == (400, "invalid_cid")
    assert (await refused(ref=REF, answer={}))[0] == 422
    assert await refused(ref="hf:org/none") == (404, "not_found")
    assert (await first.ask("POST", "/api/audit", json={"ref": REF})).status == 401
    assert (await first.ask("POST", "/api/maps", json={"ref": REF})).status == 401
    async with running(cache, hf_upstream=hub.url) as stranger:
        reply = await stranger.admin("POST", "/api/audit", json={"ref": REF})
        assert (reply.status, reply.json["code"]) == (404, "no_map")
        reply = await stranger.admin("POST", "/api/maps", json={"ref": REF})
        assert (reply.status, reply.json["code"]) == (404, "no_map")


async def test_no_map_of_what_the_hub_keeps_for_some(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url, hf_token=TOKEN) as node:
        root = await pinned(node, "hf:org/gated")
        sha = hub.repos["org/gated"].refs["main"]
        for query in ("repo=org/gated", f"repo=org/gated@{sha}"):
            assert (await node.ask("GET", f"/api/maps?{query}")).status == 404
        reply = await node.admin("POST", "/api/maps", json={"ref": "hf:org/gated"})
        assert reply.status == 404
        assert not list((cache / "maps").rglob("*.map"))
        await node.node.sharing.share(node.node.find(root))
        assert (await node.ask("GET", "/api/maps?repo=org/gated")).status == 200
        await node.node.sharing.undo(node.node.find(root))
        assert (await node.ask("GET", "/api/maps?repo=org/gated")).status == 404


async def test_a_map_is_made_once_all_is_here_and_renewed_before_it_ends(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url) as node:
        maps = node.node.maps.maker.maps
        sha = hub.repos["org/open"].refs["main"]
        await node.ask("GET", "/org/open/resolve/main/config.json")
        assert (await node.ask("GET", "/api/maps?repo=org/open")).status == 404
        await pinned(node)
        made = maps.own(REPO, sha)
        assert made is not None
        assert (await map_of(node)).maps == [made.parcel]
        maps.now_s = lambda: made.opened.map.expires - 1000.0
        again = (await map_of(node)).maps[0].open(now=None).map
        assert (again.files, again.root) == (made.opened.map.files, made.opened.map.root)
        assert again.seq > made.opened.map.seq
        assert again.expires > made.opened.map.expires


async def test_a_map_is_shown_before_it_is_published(first: Running) -> None:
    reply = await first.admin("POST", "/api/maps", json={"ref": REF})
    shown = reply.json
    assert (reply.status, shown["published"], shown["map"]["repo"]) == (200, False, "org/open")
    assert [file["path"] for file in shown["map"]["files"]] == sorted(FILES)
    assert shown["signer"] == first.node.key.peer_id
    assert str(first.node.config.cache) not in json.dumps(shown)
    reply = await first.admin("POST", "/api/maps", json={"ref": REF, "publish": True})  # there is no Kubo
    assert reply.status == 503


def test_the_size_of_a_dag_follows_from_that_of_its_file() -> None:
    def built(size: int, profile: Profile) -> int:
        step = profile.chunk_bytes
        leaves = [Leaf(Cid.of(b""), at, min(step, size - at)) for at in range(0, size, step)]
        return file_dag(leaves, profile).dag_bytes

    small, real = Profile(4, 3, 100), Profile()
    for size in range(300):
        assert dag_bytes(size, small) == built(size, small)
    for chunks in (1, 2, 1023, 1024, 1025, 2048, 2049):
        for size in (chunks * CHUNK_BYTES - 1, chunks * CHUNK_BYTES, chunks * CHUNK_BYTES + 1):
            assert dag_bytes(size, real) == built(size, real)
    assert dag_bytes((1 << 63) - 1) > 1 << 63
