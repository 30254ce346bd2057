"""Maps of peers: taken where the Hub cannot be asked, held to their form, and found out where they lie."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.fetch.hub_claims import Claims, MapAnswer
from ipfs_accelerate_node.records.hub_map import HubMap
from ipfs_accelerate_node.records.rendezvous import map_meeting
from ipfs_accelerate_node.sources import Source
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hub import FakeHub
from tests.support.maps import LIAR, Forge, another_map, another_record, liar
from tests.support.running import Running, running

FILES = {"config.json": b'{"a": 1}', "sub/weights.bin": bytes(range(256)) * 8_000, ".gitattributes": b"hidden"}
SHOWN = {path: content for path, content in FILES.items() if not path.startswith(".")}
REPO = HubRepo("org/open")


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


@pytest.fixture
async def first(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Running]:
    (cache := tmp_path / "first").mkdir(mode=0o700)
    async with running(cache, hf_upstream=hub.url) as node:
        for path in FILES:
            await node.ask("GET", f"/org/open/resolve/main/{path}")
        hub.seen.clear()
        yield node


async def test_without_the_hub_a_peers_map_will_do(cache: Path, hub: FakeHub, first: Running) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with running(cache, hf_upstream=hub.url, hf_offline=True, peers=(first.url,)) as node:
        reply = await node.ask("GET", "/api/models/org/open")
        assert reply.headers["X-Ipfs-Accelerate-Node-Claim-By"] == f"peer:{first.node.key.peer_id}"
        about = reply.json
        assert about["sha"] == sha
        assert [line["rfilename"] for line in about["siblings"]] == sorted(SHOWN)
        for path, content in SHOWN.items():
            reply = await node.ask("GET", f"/org/open/resolve/main/{path}")
            assert (reply.body, reply.headers["X-Repo-Commit"]) == (content, sha)
            assert reply.headers["X-Ipfs-Accelerate-Node-Claim-By"] == f"peer:{first.node.key.peer_id}"
        assert (await node.ask("GET", "/org/open/resolve/main/.gitattributes")).status == 404
        assert (await node.ask("GET", "/api/maps?repo=org/open")).status == 404  # a claim is not told on
    assert hub.seen == []
    async with running(cache, hf_upstream=hub.url, peers=(first.url,)) as node:  # the Hub has the last word
        reply = await node.ask("GET", f"/api/models/org/open/revision/{sha}")
        assert "X-Ipfs-Accelerate-Node-Claim-By" not in reply.headers
        about = reply.json
        assert [line["rfilename"] for line in about["siblings"]] == sorted(FILES)
        assert [seen.path for seen in hub.seen if "/resolve/" in seen.path] == []


def _file(record: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in record["files"] if entry["path"] == path)
    return found


@pytest.mark.parametrize(
    "forge",
    [
        lambda said: b"not JSON",
        lambda said: b"[]",
        lambda said: b"[" * 100_000,
        lambda said: msgspec.structs.replace(said, repo="org/other"),
        lambda said: msgspec.structs.replace(said, kind="dataset"),
        lambda said: msgspec.structs.replace(said, commit="main"),
        lambda said: msgspec.structs.replace(said, commit="0" * 40),
        lambda said: msgspec.structs.replace(said, maps=[]),
        lambda said: msgspec.structs.replace(said, maps=[msgspec.structs.replace(said.maps[0], blocks=[])]),
        another_record(lambda record: record.update(repo="org/other")),
        another_record(lambda record: record.update(repo_type="dataset")),
        another_record(lambda record: record.update(commit="main")),
        another_record(lambda record: record.update(root="../x")),
        another_record(lambda record: record.update(created=1, expires=2)),
        another_record(lambda record: _file(record, "config.json").update(cid="x")),
        another_record(lambda record: _file(record, "config.json").update(path="../x")),
        another_record(lambda record: _file(record, "config.json").update(oid=b"x")),
        another_record(lambda record: _file(record, "config.json").update(size=-1)),
        another_record(lambda record: record["files"].append(record["files"][0])),
        another_map(lambda found: replace(found, root=Cid.of(b"another", 0x70))),
        another_map(lambda found: replace(found, files=(replace(found.files[0], path=".a"), *found.files[1:-1]))),
    ],
)
async def test_a_map_that_is_none_is_no_answer(cache: Path, hub: FakeHub, first: Running, forge: Forge) -> None:
    async with (
        liar(first, forge) as url,
        running(cache, hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        assert (await node.ask("GET", "/api/models/org/open")).status == 503
        assert not list((cache / "hub" / "shelf").rglob("*.json"))


async def test_a_map_is_kept_by_its_signer_and_an_older_one_is_refused(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    said = msgspec.json.decode((await first.ask("GET", f"/api/maps?repo=org/open@{sha}")).body, type=MapAnswer)
    (parcel,) = said.maps
    signer = first.node.key.peer_id
    assert parcel.open(now=None).signer == signer
    newer = another_map(lambda found: found, first.node.key)(said)
    assert isinstance(newer, MapAnswer)
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        maps = node.node.maps.claims.maps
        maps.take(newer.maps[0], REPO, sha)
        with pytest.raises(Exception, match="older") as caught:
            maps.take(parcel, REPO, sha)
        assert caught.value.code == "record_stale"  # type: ignore[attr-defined]
        assert [kept.opened.signer for kept in maps.of(REPO, sha)] == [signer]
        # what was kept will do, also after a restart
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        assert (await node.ask("GET", f"/api/models/org/open/revision/{sha}")).json["sha"] == sha
        kept = node.node.hub.shelf.commit(REPO, sha)
        assert kept is not None
        assert (kept.claimed, kept.source) == (True, f"peer:{signer}")
        assert (await node.ask("GET", f"/api/maps?repo=org/open@{sha}")).status == 404


async def test_a_map_whose_cids_are_of_other_bytes_is_found_out(cache: Path, hub: FakeHub, first: Running) -> None:
    """The Hub says which oid counts, and has the file too. Who signed such a map is not believed again."""
    added = cache.parent / "forged"
    (added / "sub").mkdir(parents=True)
    (added / "config.json").write_bytes(b'{"x": 1}')
    (added / "sub" / "weights.bin").write_bytes(bytes(len(FILES["sub/weights.bin"])))
    root = Cid.parse((await first.node.add(added, name="forged")).root)
    plan = first.node.store.plan(root)
    assert plan is not None
    cids = {file.path: file.cid for file in plan.files}

    def forged(found: HubMap) -> HubMap:
        files = (replace(file, cid=cids.get(file.path)) for file in found.files)
        return replace(found, root=root, files=tuple(files))

    sha = hub.repos["org/open"].refs["main"]
    async with (
        liar(first, another_map(forged)) as url,
        running(cache, hf_upstream=hub.url, peers=(url,)) as node,
    ):
        for path, content in FILES.items():
            assert (await node.ask("GET", f"/org/open/resolve/main/{path}")).body == content
        assert len([seen for seen in hub.seen if seen.method == "GET" and "/resolve/" in seen.path]) == len(FILES)
        maps = node.node.maps.claims.maps
        said = maps.refuted()[LIAR.peer_id]
        assert (said.repo, said.commit, said.path) == ("org/open", sha, "config.json")
        assert maps.of(REPO, sha) == []
        assert root not in {model.root for model in node.node.models()}
        own = maps.own(REPO, sha)
        assert own is not None
        assert own.opened.map.root != root
    async with (
        liar(first, another_map(forged)) as url,
        running(cache.parent / "third", hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        assert (await node.ask("GET", "/api/models/org/open")).json["sha"] == sha  # so far nothing speaks against it
        assert (await node.ask("GET", "/org/open/resolve/main/config.json")).status == 503
        assert LIAR.peer_id in node.node.maps.claims.maps.refuted()
        assert node.node.hub.shelf.commit(REPO, sha) is None
        assert (await node.ask("GET", "/api/models/org/open")).status == 503
    async with running(cache.parent / "third", hf_upstream=hub.url, hf_offline=True, peers=(first.url,)) as node:
        assert (await node.ask("GET", "/org/open/resolve/main/config.json")).body == FILES["config.json"]


async def test_one_search_for_all_who_ask_and_none_so_soon_again(cache: Path, hub: FakeHub, first: Running) -> None:
    asked: list[Cid] = []

    async def nobody(meeting: Cid) -> AsyncGenerator[Source, None]:
        asked.append(meeting)
        none: tuple[Source, ...] = ()
        for source in none:
            yield source

    sha = hub.repos["org/open"].refs["main"]
    async with running(cache, hf_upstream=hub.url, hf_offline=True) as node:
        old = node.node.maps.claims
        claims = Claims((), old.maps, node.node.hub.shelf, meet=nobody)
        answers = await asyncio.gather(*(claims.ask(REPO, sha, search=True) for _ in range(9)))
        assert (answers, asked) == ([None] * 9, [map_meeting("org/open", sha)[0]])
        assert await claims.ask(REPO, sha) is None
        assert await claims.ask(REPO, "main", search=True) is None  # no map says what a branch means
        assert len(asked) == 1
        assert await claims.ask(REPO, sha, again=True) is None
        assert len(asked) == 2
        found = Claims((first.url,), old.maps, node.node.hub.shelf, meet=nobody)
        claim = await found.ask(REPO, sha, search=True)
        assert claim is not None
        assert (claim.commit, claim.claimed, len(asked)) == (sha, True, 2)


async def test_a_map_that_lists_other_files_than_the_hub_is_refuted_unseen(
    cache: Path, hub: FakeHub, first: Running
) -> None:
    def without_one(found: HubMap) -> HubMap:
        return replace(found, files=tuple(f for f in found.files if not f.path.startswith(".")))

    async with (
        liar(first, another_map(without_one)) as url,
        running(cache, hf_upstream=hub.url, peers=(url,)) as node,
    ):
        assert (await node.ask("GET", "/org/open/resolve/main/config.json")).body == FILES["config.json"]
        said = node.node.maps.claims.maps.refuted()[LIAR.peer_id]
        assert (said.path, said.reason) == (".gitattributes", "the commit has this file, the map has not")


async def test_a_map_cannot_have_private_files_of_ours_given_away(
    cache: Path, hub: FakeHub, first: Running, tmp_path: Path
) -> None:
    """It names one by its hash, as a file of a public repository."""
    secret = b"nobody but me"
    (folder := tmp_path / "mine").mkdir()
    (folder / "secret.txt").write_bytes(secret)

    def name_it(found: HubMap) -> HubMap:
        oid = hashlib.sha256(secret).hexdigest()
        named = [
            replace(file, oid=oid, size=len(secret)) if file.path == "config.json" else file for file in found.files
        ]
        return replace(found, files=tuple(named), root=None)

    async with (
        liar(first, another_map(name_it)) as url,
        running(cache, hf_upstream=hub.url, hf_offline=True, peers=(url,)) as node,
    ):
        receipt = await node.node.add(folder, name="mine")
        stored = node.node.find(receipt.root)
        node.node.store.set_public(stored.root, False)
        reply = await node.ask("GET", "/org/open/resolve/main/config.json")
        assert secret not in reply.body
        assert reply.status == 503
