"""What a Hub may do that it should not (tables F1h to F9h): each row by both ways in, the endpoint and `pin hf:`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.pins import Wish
from tests.support.hub import FakeHub
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(60)

TOKEN = "hf_canaryCanaryCanary"
WEIGHTS = bytes(range(256)) * 12_000
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
Prepare = Callable[[FakeHub], object]


def nothing(_: FakeHub) -> None:
    """As it is."""


def faulty(path: str, *faults: str) -> Prepare:
    return lambda hub: hub.faults.update({path: list(faults)})


def gated(hub: FakeHub) -> None:
    hub.repo("org/open", FILES, gated=True)


def private(hub: FakeHub) -> None:
    hub.repo("org/open", FILES, readers=frozenset())


def with_name(name: str) -> Prepare:
    return lambda hub: hub.repo("org/open", {**FILES, name: b"x"})


def crowded(hub: FakeHub) -> None:
    hub.page = 100_000
    hub.repo("org/open", {f"{number:06}": b"" for number in range(100_001)})


@dataclass(frozen=True)
class Row:
    """status, code: of the endpoint's answer (code: its X-Error-Code). pin: code of the failure of a pin; None for one
    that succeeds, as the endpoint's answer 200 does. path: what is asked of the endpoint."""

    name: str
    prepare: Prepare
    status: int
    code: str | None
    pin: str | None
    repo: str = "org/open"
    token: str | None = None
    path: str = "model.safetensors"
    revision: str = "main"


ROWS = [
    Row("F1h gated, nobody", gated, 401, "GatedRepo", "auth_required"),
    Row("F1h gated, not accepted", gated, 403, "GatedRepo", "auth_required", token=TOKEN),
    Row("F1h private, nobody", private, 401, "RepoNotFound", "not_found"),
    Row("F1h private, a stranger", private, 404, "RepoNotFound", "not_found", token=TOKEN),
    Row("F1h no such repository", nothing, 404, "RepoNotFound", "not_found", repo="org/none", token=TOKEN),
    Row("F1h no such revision", nothing, 404, "RevisionNotFound", "not_found", revision="none"),
    Row("F1h wrong token", nothing, 401, None, "auth_required", token="hf_wrong"),
    Row("F2h busy, come back in two minutes", faulty("api", "status:429:120"), 429, None, "rate_limited"),
    Row("F2h busy, then not", faulty("api", "status:429:0"), 200, None, None),
    Row("F2h fails for good", faulty("api", *["status:500"] * 99), 503, None, "source_unavailable"),
    Row("F2h fails twice", faulty("api", "status:500", "status:502"), 200, None, None),
    Row("F2h a hotel's network", faulty("api", "html"), 503, None, "bad_source"),
    Row("F2h no commit", faulty("model.safetensors", *["no-commit"] * 9), 503, None, "bad_source"),
    Row("F3h no etag", faulty("model.safetensors", *["no-etag"] * 9), 503, None, "bad_source"),
    Row("F3h weak etag", faulty("model.safetensors", *[f'etag:W/"{"0" * 64}"'] * 9), 503, None, "bad_source"),
    Row("F3h etag of a path", faulty("model.safetensors", *['etag:"../x"'] * 9), 503, None, "bad_source"),
    Row("F3h etag in capitals", faulty("model.safetensors", *[f'etag:"{"A" * 64}"'] * 9), 503, None, "bad_source"),
    Row("F4h other bytes once", faulty("model.safetensors", "flip"), 200, None, None),
    Row("F4h other bytes twice", faulty("model.safetensors", "flip", "flip"), 502, None, "hash_mismatch"),
    Row(
        "F4h other bytes of a small file",
        faulty("config.json", "flip", "flip"),
        502,
        None,
        "hash_mismatch",
        path="config.json",
    ),
    Row("F5h Range ignored", faulty("model.safetensors", "truncate", "ignore-range"), 200, None, None),
    Row("F5h Range refused", faulty("model.safetensors", "truncate", "416"), 200, None, None),
    Row("F5h another part", faulty("model.safetensors", "truncate", "wrong-part"), 200, None, None),
    *(
        Row(f"F6h a file named {name}", with_name(name), 502, None, "invalid_path")
        for name in ("../x", "/abs", "C:/x", "//server/share", "con", "a\\b")
    ),
    Row("F6h 100,001 files", crowded, 502, None, "too_many_files"),
    Row(
        "F7h to http elsewhere",
        faulty("model.safetensors", *["location:http://127.0.0.1:1/x"] * 9),
        503,
        None,
        "redirect_refused",
    ),
    *(
        Row(f"F9h {repo}", nothing, 400, None, "invalid_reference", repo=repo)
        for repo in ("org/" + "x" * 300, "org/..", "org/a--b")
    ),
]


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


def settings(hub: FakeHub) -> dict[str, Any]:
    return {"hf_upstream": hub.url, "stall_timeout_s": 0.5, "first_byte_timeout_s": 2.0}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_by_the_endpoint(cache: Path, hub: FakeHub, row: Row) -> None:
    row.prepare(hub)
    async with running(cache, **settings(hub)) as node:
        reply = await node.ask("GET", f"/{row.repo}/resolve/{row.revision}/{row.path}", key=row.token)
        assert (reply.status, reply.headers.get("X-Error-Code")) == (row.status, row.code), reply.body[:300]
        if row.status == 200:
            assert reply.body == FILES[row.path]
        else:
            assert reply.headers["X-Error-Message"]
            assert reply.json["error"]
    leaves_nothing(cache, hub, row)


async def pinned(node: Running, row: Row) -> str | None:
    """The code of the failure; None for a model whose files are right."""
    ref = f"hf:{row.repo}" if row.revision == "main" else f"hf:{row.repo}@{row.revision}"
    try:
        *_, job = [state async for state in node.node.updates(node.node.start_pin(ref, Wish()))]
    except NodeError as exc:
        return exc.code
    if job.error is not None:
        assert job.error["detail"]
        return str(job.error["code"])
    path = node.node.find(ref).path
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_by_a_pin(cache: Path, hub: FakeHub, row: Row) -> None:
    row.prepare(hub)
    async with running(cache, hf_token=row.token, **settings(hub)) as node:
        assert await pinned(node, row) == row.pin
        assert bool(node.node.models()) == (row.pin is None)
    leaves_nothing(cache, hub, row)


def leaves_nothing(cache: Path, hub: FakeHub, row: Row) -> None:
    """Nobody else was asked, no name of theirs became one of ours, and nothing wrong is kept as right."""
    assert hub.asked("other") == hub.asked("cdn") == []
    right = {content for content in FILES.values()}
    for blob in (cache / "blobs").iterdir():
        assert blob.read_bytes() in right
    assert not [path for path in (cache.parent, cache.parent.parent) if (path / "x").exists()]


@pytest.mark.parametrize("way", ["endpoint", "pin"])
async def test_f8h_what_was_begun_stays_at_its_commit(cache: Path, hub: FakeHub, way: str) -> None:
    """main moves between the first question and the bytes."""
    repo = hub.repos["org/open"]
    old = repo.refs["main"]
    async with running(cache, **settings(hub)) as node:
        assert (await node.ask("HEAD", "/org/open/resolve/main/config.json")).headers["X-Repo-Commit"] == old
        repo.commit({"config.json": b'{"b": 2}', "model.safetensors": WEIGHTS[::-1]})
        if way == "pin":
            assert await pinned(node, Row("F8h", nothing, 200, None, None, revision=old)) is None
        else:
            for path, content in FILES.items():
                reply = await node.ask("GET", f"/org/open/resolve/main/{path}")
                assert (reply.body, reply.headers["X-Repo-Commit"]) == (content, old)
