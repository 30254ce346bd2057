"""Where the HTTP client lets itself be sent, and where not: security default 4, tables G2, G6, G8, G10."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidConfig, SourceUnavailable
from ipfs_accelerate_node.sources.gateway import GatewaySource
from ipfs_accelerate_node.sources.guard import AddressRefused, Guard, Origin, embedded, local_name, public
from ipfs_accelerate_node.sources.http import Asked, GuardedSession, Pace, retry_after_s
from tests.support.certificates import self_signed
from tests.support.gateway import FakeGateway, redirect

BLOCK = b"a block of some model"
CID = Cid.of(BLOCK)
PATIENT = Pace(connect_s=10, first_byte_s=10, stall_s=10)

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",  # cloud metadata
    "100.64.0.1",  # carrier NAT
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
]


class Answers(AbstractResolver):
    """A DNS server that gives its answers one after another, the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.lookups = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.lookups += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ResolveResult(hostname=host, host=a, port=port, family=socket.AF_INET, proto=0, flags=0) for a in found]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_this_network_is_not_public(address: str) -> None:
    guard = Guard([Origin("https", "gateway.example", 443)])
    assert not public(ipaddress.ip_address(address))
    with pytest.raises(AddressRefused):
        guard.check_host(address, 443)
    with pytest.raises(AddressRefused):
        guard.socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 443)))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_a_public_address_is_admitted(address: str) -> None:
    guard = Guard([])
    guard.check_host(address, 443)
    assert guard.admits(ipaddress.ip_address(address), 443)


def test_a_configured_address_is_admitted_on_its_port_only() -> None:
    guard = Guard([Origin("http", "127.0.0.1", 8080), Origin("http", "fd00::5", 80)])
    guard.check_host("127.0.0.1", 8080)
    guard.check_host("::ffff:127.0.0.1", 8080)
    guard.check_host("fd00::5", 80)
    for host, port in [("127.0.0.1", 5001), ("127.0.0.2", 8080), ("fd00::6", 80)]:
        with pytest.raises(AddressRefused):
            guard.check_host(host, port)


def test_embedded_addresses_are_unwrapped() -> None:
    assert str(embedded(ipaddress.ip_address("::ffff:10.1.2.3"))) == "10.1.2.3"
    assert str(embedded(ipaddress.ip_address("64:ff9b::a01:203"))) == "10.1.2.3"
    assert str(embedded(ipaddress.ip_address("2001:db8::1"))) == "2001:db8::1"


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("nas", True), ("nas.lan", True), ("x.ipfs.localhost", True), ("a.home.arpa", True),
     ("gateway.example", False), ("ipfs.io", False), ("localhost.example", False)],
)  # fmt: skip
def test_local_names(host: str, local: bool) -> None:
    assert local_name(host) is local


async def test_a_public_name_never_leads_to_this_machine_also_when_configured() -> None:
    guard = Guard([Origin("http", "gateway.example", 80)], resolver=Answers(["127.0.0.1"]))
    with pytest.raises(AddressRefused, match=r"gateway\.example resolves to 127\.0\.0\.1"):
        await guard.resolve("gateway.example", 80)


async def test_rebinding_on_the_second_lookup_is_refused() -> None:
    guard = Guard([Origin("http", "gateway.example", 80)], resolver=Answers(["1.1.1.1"], ["127.0.0.1"]))
    assert [r["host"] for r in await guard.resolve("gateway.example", 80)] == ["1.1.1.1"]
    with pytest.raises(AddressRefused):
        await guard.resolve("gateway.example", 80)


async def test_private_addresses_are_dropped_from_a_mixed_answer() -> None:
    guard = Guard([], resolver=Answers(["10.0.0.1", "1.1.1.1"]))
    assert [r["host"] for r in await guard.resolve("mixed.example", 80)] == ["1.1.1.1"]


async def test_a_configured_local_name_and_names_below_it_may_be_private() -> None:
    guard = Guard([Origin("http", "localhost", 8080)], resolver=Answers(["127.0.0.1"]))
    assert await guard.resolve("localhost", 8080)
    assert await guard.resolve("bafy.ipfs.localhost", 8080)
    with pytest.raises(AddressRefused):
        await guard.resolve("localhost", 5001)
    with pytest.raises(AddressRefused):
        await guard.resolve("nas", 8080)


async def test_a_subdomain_gateway_on_localhost_is_followed() -> None:
    """What Kubo's gateway does with http://localhost: each CID gets a host name that no resolver needs to know."""
    async with FakeGateway({CID: BLOCK}) as gateway:
        moved = Cid.of(b"moved")
        gateway.blocks[moved] = BLOCK
        gateway.faults[CID] = redirect(f"http://{CID}.ipfs.localhost:{gateway.port}/ipfs/{moved}?format=raw", 301)
        assert await read(GatewaySource(f"http://localhost:{gateway.port}")) == BLOCK


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://gateway.example",
        "http://user:pw@gateway.example",
        "http://user@gateway.example",
        "http://gateway.example/ipfs",
        "http://gateway.example/?x=1",
        "http://gateway.example?",
        "http://gateway.example/#top",
        "http://gäteway.example",
        "http://gateway.example:99999",
        "http://",
        "gateway.example",
        "",
        "http://gateway.example\n",
        "http://gate way.example",
        "http:\\\\gateway.example",
    ],
)
def test_a_source_that_is_not_an_origin_is_a_config_error(url: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        GatewaySource(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("http://127.0.0.1:8080/", "http://127.0.0.1:8080"), ("HTTPS://Gateway.Example", "https://gateway.example"),
     ("http://[::1]:8080", "http://[::1]:8080"), ("http://h.example:80", "http://h.example")],
)  # fmt: skip
def test_a_source_is_named_by_its_origin(url: str, shown: str) -> None:
    assert GatewaySource(url).name == shown


async def read(source: GatewaySource) -> bytes:
    try:
        return await source.read_block(CID)
    finally:
        await source.aclose()


async def refused(source: GatewaySource) -> SourceUnavailable:
    with pytest.raises(SourceUnavailable) as caught:
        await read(source)
    assert caught.value.detail["source"] == source.name
    assert caught.value.detail["cid"] == str(CID)
    return caught.value


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_on_the_same_origin_is_followed(status: int) -> None:
    async with FakeGateway({CID: BLOCK}) as gateway:
        other = Cid.of(b"elsewhere")
        gateway.blocks[other] = BLOCK
        gateway.faults[CID] = redirect(f"/ipfs/{other}?format=raw", status)
        assert await read(GatewaySource(gateway.url)) == BLOCK


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("", "bad_source"),
        ("file:///etc/passwd", "redirect_refused"),
        ("https://{own}/ipfs/x", "redirect_refused"),
        ("gopher://{own}/", "redirect_refused"),
        ("http://user:pw@{own}/", "redirect_refused"),
        ("http://[bad/", "redirect_refused"),
        ("http://169.254.169.254/latest/meta-data/", "address_refused"),
        ("http://[::ffff:169.254.169.254]/", "address_refused"),
        ("http://127.0.0.1:{other}/ipfs/x", "address_refused"),
        ("http://[::ffff:127.0.0.1]:{other}/ipfs/x", "address_refused"),
        ("http://localhost:{other}/ipfs/x", "address_refused"),
        ("http://2130706433:{other}/ipfs/x", "address_refused"),
        ("http://0x7f.1:{other}/ipfs/x", "address_refused"),
        ("http://0:{other}/ipfs/x", "address_refused"),
    ],
)
async def test_a_redirect_to_where_nobody_configured_is_refused(location: str, code: str) -> None:
    async with FakeGateway({CID: BLOCK}) as gateway, FakeGateway({CID: BLOCK}) as other:
        gateway.fault = redirect(location.format(own=f"127.0.0.1:{gateway.port}", other=other.port))
        assert (await refused(GatewaySource(gateway.url))).code == code
        assert other.requests == 0


async def test_a_redirect_loop_ends_after_three_hops() -> None:
    async with FakeGateway({CID: BLOCK}) as gateway:
        gateway.fault = redirect(f"/ipfs/{CID}?format=raw")
        assert (await refused(GatewaySource(gateway.url))).code == "redirect_refused"
        assert gateway.requests == 4


async def test_credentials_stay_on_the_first_origin() -> None:
    seen: list[tuple[str, str | None]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers.get("Authorization")))
        if request.path == "/start":
            return web.Response(status=302, headers={"Location": "/same"})
        if request.path == "/same":
            return web.Response(status=302, headers={"Location": f"http://localhost:{port}/other"})
        return web.Response(text="there")

    app = web.Application()
    app.router.add_get("/{path}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    here, there = Origin("http", "127.0.0.1", port), Origin("http", "localhost", port)
    async with GuardedSession([here, there], pace=PATIENT, resolver=Answers(["127.0.0.1"])) as session:
        asked = Asked(str(here))
        async with session.request("GET", here.url("/start"), asked, {"Authorization": "Bearer s"}) as reply:
            assert await reply.read(100) == b"there"
    await runner.cleanup()
    assert seen == [("/start", "Bearer s"), ("/same", "Bearer s"), ("/other", None)]


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with FakeGateway({CID: BLOCK}) as gateway:
        assert await read(GatewaySource(gateway.url)) == BLOCK


async def test_nothing_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        fault = await refused(GatewaySource(f"http://127.0.0.1:{reserved.getsockname()[1]}"))
    assert fault.code == "source_unavailable"


async def test_a_name_that_does_not_resolve() -> None:
    class Nobody(Answers):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            raise OSError(None, "Name or service not known")

    async with GuardedSession([], pace=PATIENT, resolver=Nobody([])) as session:
        with pytest.raises(SourceUnavailable, match="Name or service not known") as caught:
            async with session.request("GET", URL("http://gone.example/"), Asked("http://gone.example")):
                pass
    assert caught.value.code == "source_unavailable"


async def test_a_name_that_takes_for_ever_to_resolve_is_stalled() -> None:
    class Silent(Answers):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.Event().wait()
            return []

    pace = Pace(connect_s=0.1, first_byte_s=0.1, stall_s=0.1)
    async with GuardedSession([], pace=pace, resolver=Silent([])) as session:
        with pytest.raises(SourceUnavailable) as caught:
            async with session.request("GET", URL("http://slow.example/"), Asked("http://slow.example")):
                pass
    assert caught.value.code == "stalled"


Certificate = Callable[[str, int], tuple[ssl.SSLContext, Path]]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return lambda name, days: self_signed(tmp_path / "server.pem", name, days)


@pytest.mark.parametrize(
    ("name", "days", "trusted"),
    [("127.0.0.1", 30, False), ("127.0.0.1", -1, True), ("gateway.example", 30, True)],
    ids=["self-signed", "expired", "wrong host"],
)
async def test_bad_certificates_are_tls_errors(certificate: Certificate, name: str, days: int, trusted: bool) -> None:
    server, pem = certificate(name, days)
    client = ssl.create_default_context(cafile=str(pem)) if trusted else None
    async with FakeGateway({CID: BLOCK}, tls=server) as gateway:
        assert (await refused(GatewaySource(gateway.url, tls=client))).code == "tls_error"
        assert gateway.requests == 0


async def test_a_good_certificate_is_taken(certificate: Certificate) -> None:
    server, pem = certificate("127.0.0.1", 30)
    async with FakeGateway({CID: BLOCK}, tls=server) as gateway:
        assert await read(GatewaySource(gateway.url, tls=ssl.create_default_context(cafile=str(pem)))) == BLOCK


NOW = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 7 ", 7.0),
        ("1000000000", 1e9),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
        ("9" * 400, None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds
