"""What a source may not talk the client into, whatever it was asked for: security default 4, tables G5–G7, F17, F18."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ipfs_accelerate_node.content.build import Profile
from ipfs_accelerate_node.errors import IntegrityError, SourceUnavailable
from ipfs_accelerate_node.fetch import Fetched, Fetcher
from ipfs_accelerate_node.sources import GatewaySource, PeerSource
from ipfs_accelerate_node.sources.guard import AddressRefused, Guard, Origin
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace
from ipfs_accelerate_node.sources.source import Abilities
from ipfs_accelerate_node.store import Store
from tests.support.gateway import FakeGateway, Flip, redirect, small_model

MODEL = small_model({"weights": bytes(range(256)) * 16, "config.json": b"{}"}, Profile(chunk_bytes=512, width=4))
FILE = next(file for file in MODEL.plan.files if file.path == "weights")
BY_CAR = Abilities(ranges=False)
PATIENT = Pace(connect_s=10, first_byte_s=10, stall_s=10)


async def block(url: str) -> object:
    return await closing(PeerSource(url), lambda source: source.read_block(FILE.cid))


async def plain_range(url: str) -> object:
    return await closing(PeerSource(url), lambda source: whole(source.read_range(FILE, 512, 1536)))


async def car_range(url: str) -> object:
    source = GatewaySource(url, abilities=BY_CAR)
    return await closing(source, lambda source: whole(source.read_range(FILE, 512, 1536)))


async def held(url: str) -> object:
    return await closing(PeerSource(url), lambda source: source.held(MODEL.root))


async def cached(url: str) -> object:
    return await closing(GatewaySource(url), lambda source: source.cached(FILE.cid))


async def closing(source: PeerSource | GatewaySource, ask: Callable[..., Awaitable[object]]) -> object:
    try:
        return await ask(source)
    finally:
        await source.aclose()


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    async with aclosing(pieces) as received:  # type: ignore[type-var]
        return b"".join([bytes(piece) async for piece in received])


QUESTIONS = [block, plain_range, car_range, held, cached]
Question = Callable[[str], Awaitable[object]]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway({}) as running:
        running.publish(MODEL)
        running.held[MODEL.root] = {"root": str(MODEL.root), "complete": True, "files": []}
        yield running


def everywhere(gateway: FakeGateway, location: str, status: int = 302) -> None:
    fault = redirect(location, status)
    gateway.fault = gateway.range_fault = gateway.car_fault = gateway.have_fault = fault


@pytest.mark.parametrize("ask", QUESTIONS)
async def test_every_question_is_answered_when_nothing_is_wrong(gateway: FakeGateway, ask: Question) -> None:
    assert await ask(gateway.url)


@pytest.mark.parametrize("ask", QUESTIONS)
@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("file:///etc/passwd", "redirect_refused"),
        ("https://{own}/ipfs/x", "redirect_refused"),
        ("http://user:pw@{own}/?token=pw", "redirect_refused"),
        ("http://169.254.169.254/latest/meta-data/", "address_refused"),
        ("http://127.0.0.1:{other}/", "address_refused"),
        ("http://[::ffff:127.0.0.1]:{other}/", "address_refused"),
        ("http://localhost:{other}/", "address_refused"),
        ("http://2130706433:{other}/", "address_refused"),
    ],
)
async def test_no_question_follows_a_redirect_into_this_network(
    gateway: FakeGateway, ask: Question, location: str, code: str
) -> None:
    async with FakeGateway({}) as other:
        everywhere(gateway, location.format(own=f"127.0.0.1:{gateway.port}", other=other.port))
        with pytest.raises(SourceUnavailable) as caught:
            await ask(gateway.url)
        assert caught.value.code == code
        assert "pw" not in str(caught.value)
        assert other.connections == 0


@pytest.mark.parametrize("ask", QUESTIONS)
async def test_no_question_follows_a_loop(gateway: FakeGateway, ask: Question) -> None:
    everywhere(gateway, "")
    requests: list[str] = []

    async def around(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(status=307, headers={"Location": str(request.rel_url)})

    app = web.Application()
    app.router.add_get("/{path:.*}", around)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(SourceUnavailable) as caught:
        await ask(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
    assert caught.value.code == "redirect_refused"
    assert len(requests) == 4


@pytest.mark.parametrize("ask", QUESTIONS)
async def test_no_question_carries_credentials_or_keeps_cookies(
    gateway: FakeGateway, ask: Question, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (netrc := tmp_path / "netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        reply = web.Response(status=302 if len(seen) == 1 else 404, headers={"Location": str(request.rel_url)})
        reply.set_cookie("session", "canary")
        return reply

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with suppress(SourceUnavailable):  # 404 is an answer to some questions
        await ask(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
    assert len(seen) == 2
    for headers in seen:
        assert not {"authorization", "cookie", "proxy-authorization"} & set(headers)
        assert "canary" not in str(headers)
        assert headers["accept-encoding"] == "identity"


class Lying(AbstractResolver):
    """A DNS server in an attacker's hand: each name means this machine."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ResolveResult(hostname=host, host=found, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def test_a_name_that_means_this_machine_is_never_connected_to(gateway: FakeGateway) -> None:
    origin = Origin("http", "gateway.example", gateway.port)
    async with GuardedSession([origin], pace=PATIENT, resolver=Lying("127.0.0.1")) as session:
        with pytest.raises(SourceUnavailable) as caught:
            async with session.request("GET", URL(f"{origin}/ipfs/x"), Asked(str(origin))):
                pass
    assert caught.value.code == "address_refused"
    assert gateway.connections == 0


def test_the_last_look_is_at_the_address_that_is_connected_to() -> None:
    """Whatever a resolver, a cache or a redirect made of a name: the socket is made for an address, and judged."""
    guard = Guard([Origin("http", "127.0.0.1", 8080)])
    for address, port in [("127.0.0.1", 5001), ("10.0.0.1", 8080), ("169.254.169.254", 80), ("not an address", 80)]:
        with pytest.raises(AddressRefused):
            guard.socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)))
    for address, port in [("127.0.0.1", 8080), ("1.1.1.1", 443)]:
        guard.socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))).close()
    assert guard.admits(ipaddress.ip_address("::ffff:127.0.0.1"), 8080)


async def test_a_second_lookup_that_turns_inwards_is_refused(gateway: FakeGateway) -> None:
    """The first answer is a public address that nobody may contact in a test, so only its grant is looked at."""
    guard = Guard([Origin("http", "gateway.example", gateway.port)], resolver=Lying("1.1.1.1", "127.0.0.1"))
    assert [found["host"] for found in await guard.resolve("gateway.example", gateway.port)] == ["1.1.1.1"]
    with pytest.raises(AddressRefused):
        await guard.resolve("gateway.example", gateway.port)
    with pytest.raises(AddressRefused):
        guard.socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", gateway.port)))


@pytest.mark.parametrize("lie", ["range_fault", "car_fault", "fault"])
async def test_a_source_that_lies_in_any_form_is_named_and_nothing_of_it_is_kept(cache: Path, lie: str) -> None:
    """F17: a wrong byte in its ranges, its CARs, or its blocks."""
    async with FakeGateway({}) as honest, FakeGateway({}) as liar:
        for gateway in (honest, liar):
            gateway.publish(MODEL)
            gateway.serves_ranges = lie == "range_fault"
            gateway.serves_cars = lie != "fault"
        setattr(liar, lie, Flip(900))
        with Store.open(cache) as store:
            with pytest.raises(IntegrityError) as caught:
                await fetch(store, liar)
            assert caught.value.detail["source"] == liar.url
            record = store.source_records.find(liar.url, 0.0)
            assert record is not None
            assert (record.rejected, record.bad) == (1, True)
            fetched = await fetch(store, honest)
            for path, data in MODEL.files.items():
                assert (fetched.model.path / path).read_bytes() == data
    form = {"range_fault": "range", "car_fault": "car", "fault": "raw"}[lie]
    assert form in liar.forms
    assert form in honest.forms


async def fetch(store: Store, gateway: FakeGateway) -> Fetched:
    source = GatewaySource(gateway.url)
    try:
        return await Fetcher(store).fetch(MODEL.root, [source], reference="x")
    finally:
        await source.aclose()
