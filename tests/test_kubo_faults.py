"""The RPC client against servers that misbehave, and what the secret of a managed child may reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from ipfs_accelerate_node.content.build import directory_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import NodeError, SourceUnavailable, Unavailable
from ipfs_accelerate_node.kubo.calls import CALLS, PREFIX, Feature
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.endpoint import endpoint
from tests.support import kubo as fixtures
from tests.support.kubo import KuboDaemon, KuboFactory, ManagedFactory

managed, kubo_factory = fixtures.managed, fixtures.kubo_factory
DIRECTORY = directory_dag([]).nodes[0]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def plain(url: str) -> KuboClient:
    return KuboClient(endpoint(url, "bearer:canary"), peer_id="", version="", managed=False)


async def test_something_else_on_the_port() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    async with serving(page) as url:
        with pytest.raises(Unavailable) as refused:
            await KuboClient.open(endpoint(url), managed=False)
        client = plain(url)
        with pytest.raises(Unavailable) as stated:
            await client.has_block(Cid.of(b""))
        await client.aclose()
    assert refused.value.code == stated.value.code == "kubo_unavailable"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_daemon_that_wants_another_authorization(status: int) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=status, text="Kubo RPC Access Denied")

    async with serving(refuse) as url:
        client = plain(url)
        for call in (client.id(), client.provide(Cid.of(b""))):
            with pytest.raises(Unavailable) as refused:
                await call
            assert refused.value.code == "kubo_forbidden"
            assert "canary" not in str(refused.value)
        await client.aclose()


async def test_redirects_and_the_environments_proxy_never_get_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({})

    async with serving(elsewhere) as other:

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": other})

        monkeypatch.setenv("HTTP_PROXY", other)
        monkeypatch.setenv("http_proxy", other)
        async with serving(redirect) as url:
            client = plain(url)
            for call in (client.id(), client.provide(Cid.of(b""))):
                with pytest.raises(Unavailable):
                    await call
            await client.aclose()
    assert seen == []


@pytest.mark.parametrize(("length", "code"), [(2**21, None), (2**21 + 1, "block_too_large")])
async def test_the_size_of_a_block_is_bounded(length: int, code: str | None) -> None:
    async def block(_: web.Request) -> web.Response:
        return web.Response(body=bytes(length))

    async with serving(block) as url:
        client = plain(url)
        if code is None:
            assert len(await client.block_get(Cid.of(b"x"), timeout_s=5)) == length
        else:
            with pytest.raises(SourceUnavailable) as refused:
                await client.block_get(Cid.of(b"x"), timeout_s=5)
            assert refused.value.code == code
        await client.aclose()


async def test_an_answer_that_breaks_off_or_never_ends() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.path.endswith("block/get"):
            response.content_length = 1000
        await response.prepare(request)
        await response.write(b"x" * 100)
        if request.path.endswith("block/get"):
            assert request.transport is not None
            request.transport.close()
        else:
            await asyncio.Event().wait()
        return response

    async with serving(answer) as url:
        client = plain(url)
        with pytest.raises(SourceUnavailable) as broken:
            await client.block_get(Cid.of(b"x"), timeout_s=5)
        assert broken.value.code == "truncated"
        with pytest.raises(Unavailable) as endless:
            await client.provide(Cid.of(b""), timeout_s=0.2)
        assert endless.value.code == "kubo_timeout"
        for silent in (client.probe(timeout_s=0.2), client.id(timeout_s=0.2)):
            with pytest.raises(Unavailable) as late:
                await silent
            assert late.value.code == "kubo_timeout"
        await client.aclose()


async def test_a_sign_of_life_does_not_wait_for_long_calls() -> None:
    pinning = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/version"):
            return web.json_response({"Version": "0.43.1"})
        pinning.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(answer) as url:
        client = plain(url)
        pins = [asyncio.create_task(client.pin_add(Cid.of(b"x"), timeout_s=2)) for _ in range(9)]
        await pinning.wait()
        assert await client.probe(timeout_s=1) == "0.43.1"
        outcomes = await asyncio.gather(*pins, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        await client.aclose()


@pytest.mark.parametrize(
    "listed", ["[]", "{}", '{"Listeners": 5}', '{"Listeners": [{"Protocol": "/x/a"}]}', "no JSON", "[" * 20000]
)
async def test_mounts_in_a_way_not_understood(listed: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=listed)

    async with serving(answer) as url:
        client = plain(url)
        with pytest.raises(Unavailable) as refused:
            await client.streams.mounts("/x/a")
        assert refused.value.code == "kubo_error"
        await client.aclose()


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        (
            ['{"Type": 4, "Responses": [{"ID": "a"}, {"ID": "b"}]}', '{"Type": 4, "Responses": [{"ID": "a"}]}'],
            ["a", "b"],
        ),
        (['{"Type": 1, "Responses": [{"ID": "a"}]}', '{"Type": 4, "Responses": null}', "{}"], []),
        ([f'{{"Type": 4, "Responses": [{{"ID": "{n}"}}]}}' for n in range(50)], [str(n) for n in range(5)]),
    ],
    ids=["each once", "other events", "bounded"],
)
async def test_providers_as_they_are_found(lines: list[str], ids: list[str]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="\n".join(lines))

    async with serving(answer) as url:
        client = plain(url)
        assert [peer async for peer in client.find_providers(Cid.of(b""), limit=5, timeout_s=5)] == ids
        await client.aclose()


async def test_a_search_for_providers_that_never_ends() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"Type": 4, "Responses": [{"ID": "a"}]}\n')
        await asyncio.Event().wait()
        return response

    async with serving(answer) as url:
        client = plain(url)
        assert [peer async for peer in client.find_providers(Cid.of(b""), timeout_s=0.3)] == ["a"]
        assert await client.providers(Cid.of(b""), timeout_s=0.3) == ["a"]
        await client.aclose()


# --- what a child's secret may reach


@pytest.fixture(scope="module")
def daemon(kubo_factory: KuboFactory) -> KuboDaemon:
    return kubo_factory()


@pytest.mark.kubo
@pytest.mark.timeout(60)
async def test_the_table_of_calls_is_what_the_client_calls(
    managed: ManagedFactory, daemon: KuboDaemon, tmp_path: Path
) -> None:
    """Every method once, through a recorder, with the restricted secret of a child that has every feature."""
    seen: set[str] = set()
    async with managed(features=list(Feature)) as service, ClientSession() as session:
        real = await service.wait_ready(20)

        async def forward(request: web.Request) -> web.StreamResponse:
            seen.add(request.path)
            if request.path.endswith("/routing/provide"):
                return web.Response(status=404, text="404 page not found")  # as a Kubo that has dropped it
            headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Content-Type")}
            url = real.url + request.path_qs
            async with session.post(url, data=await request.read(), headers=headers) as response:
                kind = response.headers.get("Content-Type", "text/plain")
                return web.Response(status=response.status, body=await response.read(), headers={"Content-Type": kind})

        async with serving(forward) as url:
            secret = _secret(tmp_path / "cache" / "kubo")
            client = await KuboClient.open(endpoint(url, secret), managed=True)
            await _every_method(client, daemon.addr, tmp_path / "cache" / "blobs" / "file")
            await client.aclose()
    assert seen == {PREFIX + call.path for call in CALLS}


async def _every_method(client: KuboClient, address: str, path: Path) -> None:
    path.write_bytes(b"weights")
    cid = DIRECTORY[0]
    await client.block_put(*DIRECTORY)
    await client.block_get(cid, timeout_s=5)
    await client.has_block(cid)
    await client.connect(address)
    await client.addresses()
    await client.repo_stat()
    await client.add_nocopy(path, ())
    await client.references([cid])
    await client.pin_add(cid)
    await client.pinned(cid)
    await client.pin_rm(cid)
    await client.files_cp(cid, "/x")
    await client.complete(cid, timeout_s=5)
    await client.files_names("/")
    await client.pins_named("x")
    await client.files_rm("/x")
    await client.provide(cid)
    await client.providers(cid, timeout_s=2, limit=1)
    await client.dag_get(cid)
    await client.key_import("other", bytes(32))
    await client.name_publish("self", cid)
    with suppress(NodeError):  # a name that is looked for on a network of one takes its time
        await client.name_resolve(client.peer_id, timeout_s=1)
    await client.block_rm([cid])
    await client.streams.listen("/x/test", 9)
    await client.streams.forward("/x/test", client.peer_id)
    assert [await client.streams.close(mount) for mount in await client.streams.mounts("/x/test")] == [1, 1]


def _secret(repo: Path) -> str:
    secret: str = json.loads((repo / "config").read_text())["API"]["Authorizations"]["node"]["AuthSecret"]
    return secret


@pytest.mark.kubo
async def test_a_childs_secret_reaches_nothing_else(managed: ManagedFactory, tmp_path: Path) -> None:
    async with managed() as service, ClientSession() as session:
        client = await service.wait_ready(20)
        kind, _, token = _secret(tmp_path / "cache" / "kubo").partition(":")
        assert kind == "bearer"

        async def status(path: str, authorization: str | None) -> int:
            headers = {} if authorization is None else {"Authorization": authorization}
            async with session.post(f"{client.url}/api/v0/{path}", headers=headers) as response:
                return response.status

        for path in ("config/show", "repo/gc", "key/export?arg=self", "key/list", "shutdown", "p2p/ls", "cat"):
            assert await status(path, f"Bearer {token}") == 403, path
        for wrong in (None, "Bearer ", "Bearer " + token[:-1], "Basic " + token):
            assert await status("id", wrong) == 403
        assert await status("id", f"Bearer {token}") == 200
        with pytest.raises(Unavailable) as refused:
            await client.name_publish("self", DIRECTORY[0])
        assert refused.value.code == "kubo_forbidden"
