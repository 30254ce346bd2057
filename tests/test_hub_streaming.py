"""Large files through the endpoint while they still come: to the real client, who never gets a wrong one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ipfs_accelerate_node.api import hub_streaming
from ipfs_accelerate_node.fetch.pins import Wish
from tests.support.hub import FakeHub
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
WEIGHTS = random.Random(2).randbytes(64 * MIB)
RIGHT = hashlib.sha256(WEIGHTS).hexdigest()
PATH = "/org/big/resolve/main/model.safetensors"
DOWNLOAD = """
import hashlib, json, sys
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
try:
    path = hf_hub_download("org/big", "model.safetensors", cache_dir=sys.argv[1])
    print(json.dumps(hashlib.sha256(open(path, "rb").read()).hexdigest()))
except (HfHubHTTPError, OSError) as exc:
    print(json.dumps(type(exc).__name__ + ": " + str(exc)))
"""


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/big", {"config.json": b"{}", "model.safetensors": WEIGHTS})
        yield fake


@pytest.fixture
async def node(cache: Path, hub: FakeHub) -> AsyncIterator[Running]:
    async with running(cache, hf_upstream=hub.url) as up:
        yield up


async def download(endpoint: str, folder: Path) -> str:
    """sha256 of what the real client has in the end, or its error."""
    folder.mkdir(exist_ok=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DOWNLOAD, str(folder / "hf"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    said: str = json.loads(out)
    return said


def sent_bytes(node: Running, hub: FakeHub) -> list[str | None]:
    return [s.headers.get("Range") for s in hub.seen if s.method == "GET" and s.path.startswith("/behind/")]


async def test_ours_never_takes_a_corrupt_file(node: Running, hub: FakeHub, tmp_path: Path) -> None:
    """The same size, one bit flipped on its way from the upstream."""
    hub.faults["model.safetensors"] = ["flip"]
    assert await download(node.url, tmp_path) == RIGHT
    assert node.node.store.unnamed.was_given(RIGHT)  # somebody may still have the beginning of the wrong one


@pytest.mark.parametrize("mib", [64, pytest.param(200, marks=[pytest.mark.full, pytest.mark.timeout(300)])])
async def test_what_the_plain_client_takes_ends_right_or_with_an_error_through_the_node(
    cache: Path, tmp_path: Path, mib: int
) -> None:
    """The same call of the same client, of the same corrupt file: straight from the upstream, through a node whose
    upstream mends itself, and through one whose does not."""
    content = random.Random(mib).randbytes(mib * MIB)
    right, wrong = hashlib.sha256(content), hashlib.sha256(bytes([content[0] ^ 1]) + content[1:])
    files = {"config.json": b"{}", "model.safetensors": content}
    said = {}
    async with FakeHub() as elsewhere, FakeHub(one_origin=True) as hub:
        for upstream in (elsewhere, hub):
            upstream.repo("org/big", files)
        elsewhere.always["model.safetensors"] = "flip"
        said["plain"] = await download(elsewhere.url, tmp_path / "plain")
        hub.faults["model.safetensors"] = ["flip"]
        async with running(cache, hf_upstream=hub.url) as node:
            said["once"] = await download(node.url, tmp_path / "once")
        hub.always["model.safetensors"] = "flip"
        (other := tmp_path / "other").mkdir(mode=0o700)
        async with running(other, hf_upstream=hub.url) as node:
            said["always"] = await download(node.url, tmp_path / "always")
    assert said["plain"] == wrong.hexdigest()  # accepted: it looks at the size alone
    assert said["once"] == right.hexdigest()
    assert "hash_mismatch" in said["always"]
    assert list((tmp_path / "always").rglob("snapshots/*/*")) == []


async def test_where_no_good_source_is_left_the_client_ends_with_an_error(
    node: Running, hub: FakeHub, tmp_path: Path
) -> None:
    hub.faults["model.safetensors"] = ["flip"] * 999
    said = await download(node.url, tmp_path)
    assert "502" in said
    assert "hash_mismatch" in said
    assert list((tmp_path / "hf").rglob("snapshots/*/*")) == []


async def test_the_end_is_held_back_until_the_file_is_verified(
    node: Running, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults["model.safetensors"] = ["flip"]
    async with node.session.get(node.url + PATH) as reply:
        assert (reply.status, reply.content_length) == (200, len(WEIGHTS))
        got = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await _read(reply, got)
    assert 0 < len(got) <= len(WEIGHTS) - hub_streaming.HELD_BACK_BYTES
    again = await node.ask("GET", PATH, headers={"Range": f"bytes={len(got)}-"})
    assert (again.status, hashlib.sha256(again.body).hexdigest()) == (200, RIGHT)
    part = await node.ask("GET", PATH, headers={"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, WEIGHTS[5:10])


async def _read(reply: aiohttp.ClientResponse, into: bytearray) -> None:
    async for piece in reply.content.iter_any():
        into += piece


async def test_a_client_that_lost_its_connection_goes_on_with_the_same_copy(node: Running, hub: FakeHub) -> None:
    """Nothing was wrong: it need not begin again."""
    async with node.session.get(node.url + PATH) as reply:
        got = await reply.content.readexactly(4 * MIB)
    rest = await node.ask("GET", PATH, headers={"Range": f"bytes={4 * MIB}-"})
    assert rest.status == 206
    assert got + rest.body == WEIGHTS
    assert not node.node.store.unnamed.was_given(RIGHT)


async def test_twenty_clients_cost_one_transfer(node: Running, hub: FakeHub) -> None:
    hub.seen.clear()

    async def read() -> str:
        digest = hashlib.sha256()
        async with node.session.get(node.url + PATH) as reply:
            async for piece in reply.content.iter_any():
                digest.update(piece)
        return digest.hexdigest()

    assert set(await asyncio.gather(*(read() for _ in range(20)))) == {RIGHT}
    asked = sorted(int((r or "bytes=0-")[6:].partition("-")[0]) for r in sent_bytes(node, hub))
    assert asked == [start * MIB for start in range(0, 64, 8)]  # each byte once


async def test_what_was_given_before_a_crash_is_not_taken_for_a_beginning(
    cache: Path, hub: FakeHub, node: Running
) -> None:
    """The mark outlives the process that gave it."""
    node.node.store.unnamed.note_given(RIGHT)
    reply: Any = await node.ask("GET", PATH, headers={"Range": "bytes=1000-"})
    assert (reply.status, hashlib.sha256(reply.body).hexdigest()) == (200, RIGHT)


async def test_with_a_map_leaves_are_sent_as_they_come(
    cache: Path, hub: FakeHub, node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a peer by CID; the end waits for the oid here too, as a map may lie."""
    *_, job = [state async for state in node.node.updates(node.node.start_pin("hf:org/big", Wish()))]
    assert job.receipt is not None, job.error
    streamed: list[int] = []
    given = hub_streaming._send

    async def noted(*arguments: Any) -> None:
        streamed.append(1)
        await given(*arguments)

    monkeypatch.setattr(hub_streaming, "_send", noted)
    async with running(cache.parent / "second", hf_upstream=hub.url, peers=(node.url,)) as second:
        digest = hashlib.sha256((await second.ask("GET", PATH)).body)
        assert digest.hexdigest() == RIGHT
        assert streamed == [1]
        assert not second.node.store.unnamed.was_given(RIGHT)
        found = second.node.store.of_oid(bytes.fromhex(RIGHT), len(WEIGHTS))
        assert found is not None
