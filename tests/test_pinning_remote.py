"""Remote pinning services as a client: our own service at the other end, and one that fails in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import AuthRequired, BadRequest, Conflict, NodeError, NotFound, SourceUnavailable
from ipfs_accelerate_node.pinning.remote import Remote, RemoteService, checked_url
from ipfs_accelerate_node.pinning.requests import Ask, Status
from tests.support.daemon import Daemon, run_cli
from tests.support.running import Running, model, running

CID = Cid.of(b"kept elsewhere", hash_code=0)
SECRET = "canary-key-of-a-service"


@asynccontextmanager
async def service(status: int, body: object, **headers: str) -> AsyncIterator[str]:
    """A service that gives one answer to everything; its base URL."""

    async def answer(_: web.Request) -> web.Response:
        if isinstance(body, bytes):
            return web.Response(body=body, status=status, headers=headers)
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Running, Running]]:
    """A node, and another one that it knows as the service "other"."""
    async with running(tmp_path / "ours") as ours, running(tmp_path / "theirs") as theirs:
        body = {"name": "other", "url": f"{theirs.url}/api/v1/", "key": theirs.keys.create(["pin"])[1]}
        reply = await ours.admin("POST", "/api/remotes", json=body)
        assert (reply.status, reply.json) == (201, {"name": "other", "url": f"{theirs.url}/api/v1"})
        yield ours, theirs


async def test_our_client_and_our_service(tmp_path: Path) -> None:
    async with two(tmp_path) as (ours, theirs):
        made = (await ours.admin("POST", "/api/remotes/other/pins", json={"ref": str(CID), "name": "mine"})).json
        async with asyncio.timeout(10):
            while made["status"] in ("queued", "pinning"):
                made = (await ours.admin("GET", f"/api/remotes/other/pins/{made['id']}")).json
        assert (made["status"], made["cid"], made["name"]) == ("pinned", str(CID), "mine")
        assert theirs.node.find(str(CID)).pinned
        again = (await ours.admin("POST", "/api/remotes/other/pins", json={"ref": str(CID)})).json
        assert again["id"] == made["id"], "what is kept is not asked for twice"
        listed = (await ours.admin("GET", f"/api/remotes/other/pins?ref={CID}")).json
        assert [pin["id"] for pin in listed["pins"]] == [made["id"]]
        removed = await ours.admin("DELETE", f"/api/remotes/other/pins/{CID}")
        assert [pin["id"] for pin in removed.json["removed"]] == [made["id"]]
        assert not theirs.node.find(str(CID)).pinned
        assert (await ours.admin("DELETE", f"/api/remotes/other/pins/{CID}")).json["code"] == "remote_pin_not_found"


async def test_remotes_are_kept_privately_and_survive_a_restart(tmp_path: Path) -> None:
    async with service(200, {"count": 0, "results": []}) as url:
        async with running(tmp_path / "cache") as node:
            body = {"name": "one", "url": url, "key": SECRET}
            assert (await node.admin("POST", "/api/remotes", json=body)).status == 201
            assert (await node.admin("POST", "/api/remotes", json=body)).json["code"] == "remote_exists"
            assert (tmp_path / "cache" / "remotes.json").stat().st_mode & 0o777 == 0o600
        async with running(tmp_path / "cache") as node:
            reply = await node.admin("GET", "/api/remotes")
            assert reply.json == {"remotes": [{"name": "one", "url": url}]}
            assert SECRET not in repr(node.node.remotes.all())
            assert (await node.ask("GET", "/api/remotes")).status == 401
            assert (await node.admin("DELETE", "/api/remotes/one")).status == 200
            assert (await node.admin("DELETE", "/api/remotes/one")).json["code"] == "remote_not_found"


async def test_a_private_model_is_not_given_away_and_what_is_not_here_needs_its_cid(tmp_path: Path) -> None:
    async with two(tmp_path) as (ours, theirs):
        added = await ours.node.add(model(tmp_path / "m", "secret"), name="secret")
        await asyncio.to_thread(ours.node.store.set_public, Cid.parse(added.root), False)
        for ref, code in (("secret", "private_model"), (added.root, "private_model"), ("unknown", "not_found")):
            reply = await ours.admin("POST", "/api/remotes/other/pins", json={"ref": ref})
            assert reply.json["code"] == code, ref
        assert (await theirs.admin("GET", "/api/v1/pins?status=queued,pinning,pinned,failed")).json["count"] == 0


FUNDS = {"error": {"reason": "INSUFFICIENT_FUNDS", "details": "pay first"}}
OK: dict[str, Any] = {"requestid": "1", "status": "pinned", "created": "2026-01-01T00:00:00Z", "pin": {"cid": str(CID)}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (401, {"error": {"reason": "UNAUTHORIZED"}}, AuthRequired, "remote_key_refused"),
        (403, b"<html>", AuthRequired, "remote_key_refused"),
        (409, FUNDS, Conflict, "remote_quota"),
        (404, {}, NotFound, "remote_pin_not_found"),
        (400, {"error": "odd"}, BadRequest, "remote_refused"),
        (500, b"", SourceUnavailable, "remote_unreachable"),
        (302, b"", SourceUnavailable, "remote_bad_answer"),
        (200, b"<html>", SourceUnavailable, "remote_bad_answer"),
        (200, {**OK, "status": "lost"}, SourceUnavailable, "remote_bad_answer"),
        (200, b" " * (9 << 20), SourceUnavailable, "remote_bad_answer"),
    ],
)
async def test_every_failure_of_a_service_is_typed(status: int, body: object, kind: type[NodeError], code: str) -> None:
    async with service(status, body, Location="http://127.0.0.1:9/") as url:
        with pytest.raises(kind) as caught:
            await RemoteService(Remote("it", url, SECRET)).add(Ask(CID))
    assert caught.value.code == code
    assert SECRET not in str(caught.value)


async def test_a_service_that_is_not_there_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    async with service(200, OK) as url:
        """It is gone now."""
    async with running(tmp_path / "cache") as node:
        reply = await node.admin("POST", "/api/remotes", json={"name": "gone", "url": url, "key": SECRET})
        assert (reply.status, reply.json["code"]) == (503, "remote_unreachable")
        assert (await node.admin("GET", "/api/remotes")).json == {"remotes": []}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h/",
        "http://example.com/",
        "https://u:p@h/",
        "https://h/?key=1",
        "https://h/#x",
        "//h",
        "https://h h/",
    ],
)
def test_urls_that_would_leak_a_key_or_are_none(url: str) -> None:
    with pytest.raises(BadRequest):
        checked_url(url)
    assert checked_url("https://h/psa/") == "https://h/psa"


async def test_a_pin_that_the_service_gives_up_half_way_is_told_and_stays_readable(tmp_path: Path) -> None:
    working: dict[str, Any] = {"id": "7", "cid": str(CID), "name": None, "status": "pinning", "created": "", "info": {}}
    failed = {**working, "status": Status.FAILED.value, "info": {"status_details": "the DAG is too big"}}
    answers = {("POST", "/api/remotes/s/pins"): (202, working), ("GET", "/api/remotes/s/pins/7"): (200, failed)}
    async with Daemon(tmp_path / "cache", answers=answers):
        done = await run_cli(tmp_path, "pin", str(CID), "--remote", "s", "--json")
        assert (done.code, done.json["code"], done.json["pin"]["id"]) == (1, "remote_pin_failed", "7")
        assert "the DAG is too big" in done.err
        left = await run_cli(tmp_path, "pin", str(CID), "--remote", "s", "--no-wait", "--json")
        assert (left.code, left.json["status"]) == (0, "pinning")


async def test_keys_come_from_a_private_file_the_environment_or_standard_input(tmp_path: Path) -> None:
    added = {"name": "s", "url": "https://h"}
    async with Daemon(tmp_path / "cache", answers={("POST", "/api/remotes"): (201, added)}) as daemon:
        (file := tmp_path / "key").write_text(SECRET + "\n")
        file.chmod(0o644)
        add = ("remote", "add", "s", "https://h")
        refused = await run_cli(tmp_path, *add, "--service-key-file", str(file))
        assert (refused.code, "chmod 600" in refused.err) == (2, True)
        assert (await run_cli(tmp_path, *add, f"--service-key={SECRET}")).code == 2
        assert daemon.seen == []
        file.chmod(0o600)
        assert (await run_cli(tmp_path, *add, "--service-key-file", str(file))).code == 0
        assert (await run_cli(tmp_path, *add, env={"IPFS_ACCELERATE_NODE_REMOTE_KEY": SECRET})).code == 0
        assert (await run_cli(tmp_path, *add, stdin=f"{SECRET}\n".encode())).code == 0
        assert [seen.body["key"] for seen in daemon.seen] == [SECRET] * 3
