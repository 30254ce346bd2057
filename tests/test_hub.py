"""The Hub as a source (tables F1h-F9h), against a server on loopback that speaks its protocol."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import httpx2
import pytest
from huggingface_hub import HfApi

from ipfs_accelerate_node.errors import (
    AuthRequired,
    NodeError,
    NotFound,
    SourceUnavailable,
    UnsafeContent,
    problem,
)
from ipfs_accelerate_node.sources.hub import HubSource
from ipfs_accelerate_node.sources.hub_answers import HubFile
from ipfs_accelerate_node.sources.hub_body import CHUNK_BYTES
from ipfs_accelerate_node.sources.hub_hops import HOP_HEADER
from ipfs_accelerate_node.sources.hub_snapshot import OidHash, Snapshot, Traffic
from tests.support.hub import SIGNED, FakeHub, oid

TOKEN = "hf_canaryCanaryCanary"
WEIGHTS = bytes(range(256)) * (CHUNK_BYTES // 256) + b"tail"
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "1_Pooling/config.json": b"{}",
    "empty.txt": b"",
    ".gitattributes": b"x",
    "onnx/.hidden/x.json": b"y",
}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(tokens=[TOKEN, "hf_other"]) as fake:
        fake.repo("org/open", FILES)
        yield fake


def source(hub: FakeHub, token: str | None = None, stall_timeout_s: float = 10.0) -> HubSource:
    return HubSource(
        hub.url,
        token=token,
        redirect_origins=[hub.cdn],
        hops=("other", "own"),
        backoff_s=0,
        stall_timeout_s=stall_timeout_s,
    )


def file(snapshot: Snapshot, path: str) -> HubFile:
    return next(entry for entry in snapshot.files if entry.path == path)


async def read(source: HubSource, snapshot: Snapshot, path: str, start: int = 0) -> tuple[int, bytes]:
    content = b""
    async with source.open(snapshot, file(snapshot, path), start, Traffic()) as (begins, runs):
        async for run in runs:
            content += run
    return begins, content


async def test_a_commit_is_its_tree_less_hidden_files(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
    assert snapshot.commit == hub.repos["org/open"].refs["main"]
    assert not snapshot.restricted
    assert [(entry.path, entry.size, entry.oid) for entry in snapshot.files] == [
        (path, len(content), oid(path, content)) for path, content in sorted(FILES.items()) if "/." not in f"/{path}"
    ]


async def test_bytes_come_whole_from_any_offset_and_match_their_oid(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open", "main")
        for entry in snapshot.files:
            begins, content = await read(hub_source, snapshot, entry.path)
            assert (begins, content) == (0, FILES[entry.path])
            measured = OidHash(entry)
            measured.update(content)
            assert measured.oid == entry.oid
        assert await read(hub_source, snapshot, "model.safetensors", 1000) == (1000, WEIGHTS[1000:])


async def test_a_revision_is_resolved_once(hub: FakeHub) -> None:
    repo = hub.repos["org/open"]
    first = repo.refs["main"]
    repo.refs["refs/pr/1"] = first
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        moved = repo.commit({**FILES, "config.json": b"another"})
        assert await read(hub_source, snapshot, "config.json") == (0, FILES["config.json"])
        assert (await hub_source.snapshot("org/open")).commit == moved
        assert (await hub_source.snapshot("org/open", first)).commit == first
    asked = [request.path for request in hub.asked("hub")]
    assert sum("/revision/main" in path for path in asked) == 2
    assert not any("/tree/main" in path or "/resolve/main" in path for path in asked)


async def test_the_token_goes_to_the_hub_and_nowhere_else(hub: FakeHub) -> None:
    async with source(hub, TOKEN) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        await read(hub_source, snapshot, "model.safetensors")
        hub.faults["model.safetensors"] = [f"location:{hub.url}/elsewhere"]
        with pytest.raises(NodeError):
            await read(hub_source, snapshot, "model.safetensors")
    assert hub.asked("cdn")
    for request in hub.seen:
        expected = f"Bearer {TOKEN}" if request.at == "hub" else None
        assert request.authorization == expected, request
        assert (request.headers.get(HOP_HEADER) == "other,own") == (request.at == "hub")
        assert request.headers["Accept-Encoding"] == "identity"


async def test_no_token_is_sent_unless_it_was_given(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.other)
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        await read(hub_source, snapshot, "config.json")
    assert all(request.authorization is None for request in hub.seen)
    assert not hub.asked("other")


@pytest.mark.parametrize(
    ("repo", "token", "kind", "words"),
    [
        ("org/gated", None, AuthRequired, "log in"),
        ("org/gated", TOKEN, AuthRequired, "accept the licence at http"),
        ("org/private", None, NotFound, "or private: check the name, or set a token"),
        ("org/private", "hf_other", NotFound, "no access for this token"),
        ("org/absent", None, NotFound, "or private"),
        ("org/absent", TOKEN, NotFound, "no access for this token"),
        ("org/open", "hf_expired", AuthRequired, "invalid or has expired"),
    ],
)
async def test_refusals_say_what_to_do(
    hub: FakeHub, repo: str, token: str | None, kind: type[NodeError], words: str
) -> None:
    hub.repo("org/gated", FILES, gated=True)
    hub.repo("org/private", FILES, readers=frozenset({TOKEN}))
    async with source(hub, token) as hub_source:
        with pytest.raises(kind, match=words) as caught:
            await hub_source.snapshot(repo)
    assert type(caught.value) is kind


async def test_what_was_let_in_by_token_is_restricted(hub: FakeHub) -> None:
    hub.repo("org/gated", FILES, gated=True, accepted=frozenset({TOKEN}))
    hub.repo("org/private", FILES, readers=frozenset({TOKEN}))
    async with source(hub, TOKEN) as hub_source:
        for repo in ("org/gated", "org/private"):
            snapshot = await hub_source.snapshot(repo)
            assert snapshot.restricted
            assert await read(hub_source, snapshot, "config.json") == (0, FILES["config.json"])


async def test_a_bare_401_may_be_a_private_repository(hub: FakeHub) -> None:
    hub.faults["api"] = ["status:401"]
    async with source(hub) as hub_source:
        with pytest.raises(NotFound, match="or private: check the name"):
            await hub_source.snapshot("org/open")


async def test_unknown_revision(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        with pytest.raises(NotFound, match="revision"):
            await hub_source.snapshot("org/open", "absent")


@pytest.mark.parametrize(
    ("faults", "code", "asked"),
    [
        (["html"], "bad_source", 1),
        (["list"], "bad_source", 1),
        (["json:{}"], "bad_source", 1),
        (['json:{"id": "org/open", "sha": "../../x", "siblings": []}'], "bad_source", 1),
        (["json:" + "[" * 100_000], "bad_source", 1),
        (["status:508"], "loop", 1),
        (["status:429:3600"], "rate_limited", 1),
        (["status:429:0"] * 9, "rate_limited", 4),
        (["status:500"] * 9, "source_unavailable", 4),
        (["redirect-elsewhere"], "redirect_refused", 1),
    ],
)
async def test_metadata_that_is_none(hub: FakeHub, faults: list[str], code: str, asked: int) -> None:
    hub.faults["api"] = faults
    async with source(hub, TOKEN) as hub_source:
        with pytest.raises(SourceUnavailable) as caught:
            await hub_source.snapshot("org/open")
    assert caught.value.code == code
    assert caught.value.source == hub.url
    assert len(hub.seen) == asked
    assert not hub.asked("other")


async def test_trouble_that_passes_is_waited_out(hub: FakeHub) -> None:
    hub.faults["api"] = ["status:429:0", "status:503", "status:500"]
    hub.faults["config.json"] = []
    async with source(hub) as hub_source:
        assert (await hub_source.snapshot("org/open")).files


async def test_the_next_page_is_not_fetched_from_another_origin(hub: FakeHub) -> None:
    sha = hub.repos["org/open"].refs["main"]
    about = f'json:{{"id": "org/open", "sha": "{sha}", "private": false, "gated": false, "siblings": []}}'
    hub.faults["api"] = [about, "link-elsewhere"]
    async with source(hub, TOKEN) as hub_source:
        with pytest.raises(SourceUnavailable) as caught:
            await hub_source.snapshot("org/open")
    assert caught.value.code == "redirect_refused"
    assert not hub.asked("other")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "C:x", "\\\\host\\share", "a\0b", "con", "./x", "a//b", "x" * 256]
)
async def test_a_tree_with_an_unsafe_name_is_refused_before_anything_is_written(hub: FakeHub, path: str) -> None:
    hub.repo("org/evil", {"config.json": b"{}", path: b"x"})
    async with source(hub) as hub_source:
        with pytest.raises(UnsafeContent):
            await hub_source.snapshot("org/evil")
    assert not any("/resolve/" in request.path for request in hub.seen)


async def test_names_that_a_disk_confuses_are_refused(hub: FakeHub) -> None:
    hub.repo("org/twins", {"Model.json": b"{}", "model.json": b"x"})
    async with source(hub) as hub_source:
        with pytest.raises(UnsafeContent):
            await hub_source.snapshot("org/twins")


def tree(**entry: object) -> str:
    whole = {"type": "file", "path": "config.json", "size": 1, "oid": "0" * 40, **entry}
    return "json:" + json.dumps([whole] if entry.get("count") is None else [whole] * 10_001)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"size": -1}, "bad_source"),
        ({"size": "1"}, "bad_source"),
        ({"size": 1 << 63}, "bad_source"),
        ({"oid": "0" * 39}, "bad_source"),
        ({"oid": "0" * 64}, "bad_source"),
        ({"oid": "../" + "0" * 37}, "bad_source"),
        ({"oid": None}, "bad_source"),
        ({"path": 7}, "bad_source"),
        ({"lfs": {"oid": "0" * 40, "size": 1, "pointerSize": 1}}, "bad_source"),
        ({"lfs": {"size": 1}}, "bad_source"),
        ({"count": 10_001}, "too_many_files"),
    ],
)
async def test_a_tree_that_makes_no_sense(hub: FakeHub, entry: dict[str, object], code: str) -> None:
    sha = hub.repos["org/open"].refs["main"]
    hub.faults["api"] = [f'json:{{"id": "org/open", "sha": "{sha}", "siblings": []}}', tree(**entry)]
    async with source(hub) as hub_source:
        with pytest.raises(SourceUnavailable) as caught:
            await hub_source.snapshot("org/open")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("html", "bad_source"),
        ("no-commit", "bad_source"),
        ("no-etag", "bad_source"),
        (f'etag:W/"{"0" * 40}"', "bad_source"),
        ('etag:"../../../x"', "bad_source"),
        (f'etag:"{"0" * 39}"', "bad_source"),
        (f'etag:"{"A" * 64}"', "bad_source"),
        (f'etag:"{"0" * 64}"', "bad_source"),  # well-formed, of another file
        ("gzip", "bad_source"),
        ("long", "bad_source"),
        ("truncate", "truncated"),
        ("xet-only", "xet_only"),
        ("status:429:5", "rate_limited"),
        ("status:500", "source_unavailable"),
        ("location:ftp://127.0.0.1/x", "redirect_refused"),
        ("location:file:///etc/passwd", "redirect_refused"),
        ("location:http://169.254.169.254/latest/meta-data", "redirect_refused"),
        ("location:https://169.254.169.254/latest/meta-data", "redirect_refused"),
        ("location:https://[::ffff:127.0.0.1]/x", "redirect_refused"),
        ("location:https://user:password@127.0.0.1/x", "redirect_refused"),
        ("location:OTHER/x", "redirect_refused"),
    ],
)
async def test_a_file_that_does_not_come(hub: FakeHub, fault: str, code: str) -> None:
    async with source(hub, TOKEN) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        hub.faults["model.safetensors"] = [fault.replace("OTHER", hub.other)]
        with pytest.raises(SourceUnavailable) as caught:
            await read(hub_source, snapshot, "model.safetensors")
    assert caught.value.code == code
    assert "password" not in str(caught.value)
    assert SIGNED not in str(problem(caught.value))
    assert not hub.asked("other")


async def test_a_redirect_loop_ends(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        target = f"/org/open/resolve/{snapshot.commit}/model.safetensors"
        hub.faults["model.safetensors"] = [f"location:{target}"] * 9
        with pytest.raises(SourceUnavailable, match="redirects more than 3 times"):
            await read(hub_source, snapshot, "model.safetensors")
    assert sum("/resolve/" in request.path for request in hub.seen) == 4


async def test_a_redirect_within_the_hub_keeps_the_token(hub: FakeHub) -> None:
    async with source(hub, TOKEN) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        hub.faults["config.json"] = [f"location:/org/open/resolve/{snapshot.commit}/config.json"]
        assert await read(hub_source, snapshot, "config.json") == (0, FILES["config.json"])
    resolves = [request for request in hub.asked("hub") if "/resolve/" in request.path]
    assert [request.authorization for request in resolves] == [f"Bearer {TOKEN}"] * 2


async def test_a_stall_ends(hub: FakeHub) -> None:
    async with source(hub, stall_timeout_s=0.2) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        hub.faults["model.safetensors"] = ["stall"]
        with pytest.raises(SourceUnavailable) as caught:
            await read(hub_source, snapshot, "model.safetensors")
    assert caught.value.code == "stalled"


async def test_a_source_that_only_drips_has_stalled(hub: FakeHub) -> None:
    async with source(hub, stall_timeout_s=0.2) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        hub.faults["model.safetensors"] = ["drip"]
        with pytest.raises(SourceUnavailable) as caught:
            await read(hub_source, snapshot, "model.safetensors")
    assert caught.value.code == "stalled"


async def test_the_library_asks_nobody_but_the_upstream_of_a_call(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        await hub_source.snapshot("org/open")
    hub.seen.clear()
    with pytest.raises(httpx2.ConnectError):
        await asyncio.to_thread(HfApi(endpoint=hub.other, token=TOKEN).model_info, "org/open")
    assert not hub.seen


async def test_ranges_that_are_not_what_was_asked_for(hub: FakeHub) -> None:
    async with source(hub) as hub_source:
        snapshot = await hub_source.snapshot("org/open")
        hub.faults["model.safetensors"] = ["ignore-range", "416", "wrong-part"]
        assert await read(hub_source, snapshot, "model.safetensors", 10) == (0, WEIGHTS)
        for _ in range(2):
            with pytest.raises(SourceUnavailable) as caught:
                await read(hub_source, snapshot, "model.safetensors", 10)
            assert caught.value.code == "range_refused"


async def test_the_token_is_in_no_log_and_no_error(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hub.repo("org/gated", FILES, gated=True)
    async with source(hub, TOKEN) as hub_source:
        assert TOKEN not in repr(hub_source)
        snapshot = await hub_source.snapshot("org/open")
        await read(hub_source, snapshot, "model.safetensors")
        for repo in ("org/gated", "org/absent"):
            with pytest.raises(NodeError) as caught:
                await hub_source.snapshot(repo)
            assert TOKEN not in str(problem(caught.value))
        hub.faults["model.safetensors"] = ["status:500", "truncate"]
        for _ in range(2):
            with pytest.raises(NodeError) as caught:
                await read(hub_source, snapshot, "model.safetensors")
            assert TOKEN not in f"{problem(caught.value)}{caught.value!r}{caught.value.__cause__!r}"
    assert TOKEN not in caplog.text
    assert SIGNED not in caplog.text
