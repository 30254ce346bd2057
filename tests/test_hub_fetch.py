"""`hf:` references into a real store, from a Hub on loopback: what arrives, what is refused, what a failure leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ipfs_accelerate_node.errors import Conflict, IntegrityError, NodeError, QuotaExceeded, SourceUnavailable
from ipfs_accelerate_node.fetch.hub import fetch_hub
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_body import CHUNK_BYTES
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import Store, hash_directory
from tests.support.hub import SIGNED, FakeHub, oid

TOKEN = "hf_canaryCanaryCanary"
WEIGHTS = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"tail"
FILES = {
    "1_Pooling/config.json": b"{}",
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    ".gitattributes": b"hidden",
}
VISIBLE = {path: content for path, content in FILES.items() if not path.startswith(".")}
SIZE = sum(map(len, VISIBLE.values()))


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(tokens=[TOKEN]) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/gated", FILES, gated=True, accepted=frozenset({TOKEN}))
        yield fake


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


async def fetch(
    store: Store,
    hub: FakeHub,
    repo: str = "org/open",
    *,
    token: str | None = None,
    name: str | None = None,
    seen: list[Progress] | None = None,
    stall_timeout_s: float = 10.0,
) -> Fetched:
    async with HubSource(
        hub.url, token=token, redirect_origins=[hub.cdn], backoff_s=0, stall_timeout_s=stall_timeout_s
    ) as source:
        progress = (lambda _: None) if seen is None else seen.append
        return await fetch_hub(store, source, repo, None, name=name, progress=progress)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def staged(store: Store) -> dict[str, bytes]:
    """What is left of files that are not whole, by path."""
    left = contents(store.root / "unnamed")
    return {path: left[oid(path, content)] for path, content in FILES.items() if oid(path, content) in left}


def part_of(store: Store, path: str) -> Path:
    return store.root / "unnamed" / oid(path, FILES[path])


def ranges(hub: FakeHub) -> list[str | None]:
    return [request.headers.get("Range") for request in hub.asked("cdn")]


async def test_a_commit_becomes_a_model(hub: FakeHub, store: Store, tmp_path: Path) -> None:
    for path, content in VISIBLE.items():
        (tmp_path / "same" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "same" / path).write_bytes(content)
    seen: list[Progress] = []
    fetched = await fetch(store, hub, name="mine", seen=seen)
    assert fetched.model.root == hash_directory(tmp_path / "same").plan.root
    assert contents(fetched.model.path) == VISIBLE
    assert (fetched.model.names, fetched.model.pinned, fetched.model.public) == (("mine",), True, True)
    assert (fetched.bytes_total, fetched.bytes_fetched, fetched.already_here) == (SIZE, SIZE, False)
    provenance = fetched.model.provenance
    commit = hub.repos["org/open"].refs["main"]
    assert (provenance.kind, provenance.hub_repo, provenance.hub_commit) == ("hf", "org/open", commit)
    assert provenance.reference == f"hf:org/open@{commit}"
    [share] = provenance.sources
    assert (share.source, share.kind, share.bytes, share.rejected) == (hub.url, "hub", SIZE, 0)
    assert list(dict.fromkeys(now.phase for now in seen)) == ["walking", "fetching", "committing"]
    done = [now.bytes_done for now in seen]
    assert done == sorted(done)
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (SIZE, SIZE)
    assert staged(store) == {}


async def test_what_is_here_is_not_fetched_again(hub: FakeHub, store: Store) -> None:
    first = await fetch(store, hub)
    hub.seen.clear()
    again = await fetch(store, hub, name="later")
    assert (again.already_here, again.model.root, again.bytes_fetched) == (True, first.model.root, 0)
    assert again.plan == first.plan
    assert dict(again.nodes) == dict(first.nodes)
    assert "later" in again.model.names
    assert not any("/resolve/" in request.path for request in hub.seen)


async def test_what_needed_a_token_is_not_public(hub: FakeHub, store: Store) -> None:
    fetched = await fetch(store, hub, "org/gated", token=TOKEN)
    assert not fetched.model.public
    assert store.file(fetched.plan.files[0].cid, public_only=True) is None


async def test_wrong_bytes_are_asked_for_once_more(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["flip"]
    hub.faults["config.json"] = ["flip"]
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE
    assert fetched.sources[0].rejected == 2


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
async def test_bytes_that_stay_wrong_are_named_and_not_kept(hub: FakeHub, store: Store, path: str) -> None:
    hub.faults[path] = ["flip", "flip"]
    with pytest.raises(IntegrityError) as caught:
        await fetch(store, hub)
    assert caught.value.origin == hub.url
    assert caught.value.detail["expected"] == oid(path, FILES[path])
    assert store.models() == []
    assert path not in staged(store)


async def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["truncate", "truncate"]
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE
    first, second, third = ranges(hub)
    assert first is None
    assert second is not None
    assert third is not None
    assert 0 < int(second[6:-1]) < int(third[6:-1])
    assert fetched.bytes_fetched <= SIZE + CHUNK_BYTES


@pytest.mark.parametrize("answer", ["ignore-range", "416", "wrong-part"])
async def test_a_range_that_is_not_answered_starts_again(hub: FakeHub, store: Store, answer: str) -> None:
    hub.faults["model.safetensors"] = ["truncate", answer]
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE


async def test_a_failed_fetch_leaves_its_part_for_the_next(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["truncate", "status:404"]
    with pytest.raises(NodeError):
        await fetch(store, hub)
    left = staged(store)["model.safetensors"]
    assert WEIGHTS.startswith(left)
    assert left
    hub.seen.clear()
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE
    assert ranges(hub) == [f"bytes={len(left)}-"]
    assert len(WEIGHTS) - len(left) <= fetched.bytes_fetched <= SIZE - len(left)  # others were cut off too


async def test_a_part_that_went_bad_on_disk_is_found_out(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["truncate", "status:404"]
    with pytest.raises(NodeError):
        await fetch(store, hub)
    part = part_of(store, "model.safetensors")
    part.write_bytes(b"X" + part.read_bytes()[1:])
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE


async def cut_off(cache: Path, hub: FakeHub) -> Path:
    """An earlier run got half of the weights; where that lies."""
    hub.faults["model.safetensors"] = ["truncate", "status:404"]
    with Store.open(cache) as before:
        with pytest.raises(NodeError):
            await fetch(before, hub)
        hub.seen.clear()
        return part_of(before, "model.safetensors")


async def test_a_part_that_is_a_blob_by_now_is_never_written_to(hub: FakeHub, tmp_path: Path) -> None:
    """A crash on its way into the store left it so."""
    part = await cut_off(tmp_path / "cache", hub)
    half = part.read_bytes()
    (other := tmp_path / "blob").hardlink_to(part)
    other.chmod(0o400)
    with Store.open(tmp_path / "cache") as store:
        assert contents((await fetch(store, hub)).model.path) == VISIBLE
    assert other.read_bytes() == half


async def test_a_whole_file_left_by_a_commit_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    part = await cut_off(tmp_path / "cache", hub)
    part.write_bytes(WEIGHTS)
    part.chmod(0o400)
    part.with_name(f"{part.name}.have").unlink()
    with Store.open(tmp_path / "cache") as store:
        assert contents((await fetch(store, hub)).model.path) == VISIBLE
    assert not hub.asked("cdn")


async def test_a_stall_that_does_not_end(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["stall"] * 9
    with pytest.raises(SourceUnavailable) as caught:
        await fetch(store, hub, stall_timeout_s=0.1)
    assert caught.value.code == "stalled"
    assert WEIGHTS.startswith(staged(store)["model.safetensors"])


async def test_cancelled_it_can_be_taken_up_again(hub: FakeHub, store: Store) -> None:
    hub.faults["model.safetensors"] = ["stall"]
    moving = asyncio.Event()

    def progress(now: Progress) -> None:
        if now.bytes_done > CHUNK_BYTES:
            moving.set()

    async with HubSource(hub.url, redirect_origins=[hub.cdn], backoff_s=0) as source:
        task = asyncio.create_task(fetch_hub(store, source, "org/open", None, name=None, progress=progress))
        await moving.wait()
        with pytest.raises(Conflict, match="already"):
            await fetch(store, hub)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert store.models() == []
    fetched = await fetch(store, hub)
    assert contents(fetched.model.path) == VISIBLE
    assert fetched.bytes_fetched < SIZE


async def test_what_has_no_room_is_refused_before_the_first_byte(hub: FakeHub, tmp_path: Path) -> None:
    with Store.open(tmp_path / "small", quota_bytes=SIZE - 1) as small:
        with pytest.raises(QuotaExceeded):
            await fetch(small, hub)
        assert staged(small) == {}
    assert not any("/resolve/" in request.path for request in hub.seen)


async def test_a_restart_keeps_what_is_staged(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = ["truncate", "status:404"]
    with Store.open(tmp_path / "cache") as before:
        with pytest.raises(NodeError):
            await fetch(before, hub)
    hub.seen.clear()
    with Store.open(tmp_path / "cache") as after:
        fetched = await fetch(after, hub)
        assert contents(fetched.model.path) == VISIBLE
    assert ranges(hub)[0] is not None


async def test_the_token_is_nowhere(hub: FakeHub, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults["model.safetensors"] = ["truncate", "flip"]
    fetched = await fetch(store, hub, "org/gated", token=TOKEN)
    for path, content in contents(store.root).items():
        assert TOKEN.encode() not in content, path
        assert SIGNED.encode() not in content, path
    assert TOKEN not in f"{asdict(fetched.model)}{fetched}"
    assert TOKEN not in caplog.text
    assert SIGNED not in caplog.text
    assert all(request.authorization is None for request in hub.seen if request.at != "hub")


async def test_what_the_hub_said_is_kept_with_the_cids_and_outlives_gc(hub: FakeHub, store: Store) -> None:
    shelf = HubShelf(store.root)
    async with HubSource(hub.url, redirect_origins=[hub.cdn]) as source:
        fetched = await fetch_hub(store, source, "org/open", None, name=None, progress=lambda _: None, shelf=shelf)
    store.gc()
    repo, commit = HubRepo("org/open"), hub.repos["org/open"].refs["main"]
    kept = HubShelf(store.root).commit(repo, commit)
    assert kept is not None
    assert kept.root == str(fetched.model.root)
    assert set(kept.cids) == set(VISIBLE)
    assert {entry.path for entry in kept.entries if not entry.folder} == set(FILES)
    ref = HubShelf(store.root).ref(repo, "main")
    assert ref is not None
    assert ref[0] == commit
