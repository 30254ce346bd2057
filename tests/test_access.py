"""Who may do what, from where: keys, scopes, and requests that a web page made (H7, H8)."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.browser import Origins
from ipfs_accelerate_node.api.keys import SCOPES, KeyRing
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import InvalidConfig, NotFound
from tests.support.http import Served, serving, small_app


async def fine(request: web.Request) -> web.Response:
    return web.Response(text="fine")


ROUTES = tuple(Route("GET", f"/{surface.name.lower()}", fine, surface) for surface in Surface)


async def status(served: Served, path: str, headers: Mapping[str, str] | None = None) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(URL(served.url + path, encoded=True), headers=headers) as reply,
    ):
        await reply.read()
        return reply.status


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# -- the key ring


def test_a_key_is_256_random_bits_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path / "keys.json")
    key, secret = ring.create(["infer"], name="laptop")
    assert len(secret.removeprefix("ian_")) == 43  # 256 bits in base64
    text = (tmp_path / "keys.json").read_text()
    assert secret not in text
    assert key.sha256 in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]


def test_keys_outlive_the_daemon_and_can_be_removed(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path / "keys.json")
    first, secret = ring.create(["infer", "metrics"])
    second, other = ring.create(["admin"])
    again = KeyRing.open(tmp_path / "keys.json")
    assert [key.id for key in again.stored()] == [first.id, second.id]
    caller = again.identify(secret)
    assert caller is not None
    assert caller.may("infer")
    assert not caller.may("admin")
    again.remove(first.id)
    assert again.identify(secret) is None
    assert again.identify(other) is not None
    assert [key.id for key in KeyRing.open(tmp_path / "keys.json").stored()] == [second.id]
    with pytest.raises(NotFound):
        again.remove(first.id)


def test_the_key_of_a_run_is_admin_never_stored_and_replaced_by_the_next(tmp_path: Path) -> None:
    ring = KeyRing.open(tmp_path / "keys.json")
    old, new = ring.session_key(), ring.session_key()
    assert ring.identify(old) is None
    caller = ring.identify(new)
    assert caller is not None
    assert all(caller.may(scope) for scope in SCOPES)
    assert ring.stored() == []
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"version":2,"keys":[]}', b'{"version":1,"keys":[{"id":1}]}', b'{"version":1,"k\xff":1}'],
)
def test_a_key_file_that_does_not_parse_stops_the_start(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(body)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig, match=r"keys\.json"):
        KeyRing.open(path)


def test_a_key_file_that_others_can_read_or_that_is_a_link_is_refused(tmp_path: Path) -> None:
    KeyRing.open(tmp_path / "real.json").create(["admin"])
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(InvalidConfig):
        KeyRing.open(tmp_path / "link.json")
    (tmp_path / "real.json").chmod(0o644)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        KeyRing.open(tmp_path / "real.json")
    (tmp_path / "directory.json").mkdir(mode=0o700)
    with pytest.raises(InvalidConfig):
        KeyRing.open(tmp_path / "directory.json")


# -- surfaces and scopes

OPEN_ON_LOOPBACK = {Surface.OPEN, Surface.INFER, Surface.SHARE, Surface.METRICS, Surface.CONTENT, Surface.HUB}
NEEDED = {
    Surface.INFER: "infer",
    Surface.SHARE: "peer",
    Surface.CONTENT: "peer",
    Surface.METRICS: "metrics",
    Surface.PIN: "pin",
    Surface.STATE: "admin",
}


async def test_loopback_is_open_but_for_what_changes_state(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path / "keys.json")
    admin, (_, infer) = keys.session_key(), keys.create(["infer"])
    async with serving(tmp_path, lambda port: small_app(port, ROUTES, keys=keys)) as served:
        for surface in Surface:
            path = f"/{surface.name.lower()}"
            free = surface in OPEN_ON_LOOPBACK
            assert await status(served, path) == (200 if free else 401)
            assert await status(served, path, bearer("sk-anything")) == (200 if free else 401)
            assert await status(served, path, bearer(infer)) == (200 if free else 403)
            assert await status(served, path, bearer(admin)) == 200


async def test_elsewhere_every_surface_needs_its_scope(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path / "keys.json")
    secrets = {scope: keys.create([scope])[1] for scope in SCOPES}
    async with serving(tmp_path, lambda port: small_app(port, ROUTES, keys=keys, host="0.0.0.0")) as served:
        for surface, scope in itertools.product(set(Surface) - {Surface.HUB}, sorted(SCOPES)):
            wanted = 200 if scope in ("admin", NEEDED.get(surface, scope)) else 403
            assert await status(served, f"/{surface.name.lower()}", bearer(secrets[scope])) == wanted
        for surface in set(Surface) - {Surface.HUB}:
            assert await status(served, f"/{surface.name.lower()}") == (200 if surface is Surface.OPEN else 401)
        for secret in secrets.values():  # no key of ours means anything there
            assert await status(served, "/hub", bearer(secret)) == 403


async def test_share_opens_what_peers_read_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES, host="0.0.0.0", share=True)) as served:
        opened = {s for s in Surface if await status(served, f"/{s.name.lower()}") == 200}
    assert opened == {Surface.OPEN, Surface.SHARE, Surface.CONTENT}


async def test_keys_that_are_no_keys(tmp_path: Path) -> None:
    """H7: none, wrong, a prefix, one letter more, another scheme, in the URL, two headers."""
    keys = KeyRing(tmp_path / "keys.json")
    admin = keys.session_key()
    async with serving(tmp_path, lambda port: small_app(port, ROUTES, keys=keys)) as served:
        for value in ("", "Bearer", "Bearer ", f"Bearer {admin[:-1]}", f"Bearer {admin}x", f"Basic {admin}", admin):
            assert await status(served, "/state", {"Authorization": value}) == 401, value
        assert await status(served, "/state", {"Authorization": "Bearer " + "x" * 5000}) == 401
        assert await status(served, "/state", {"Authorization": f"bearer {admin}"}) == 200
        for name in ("key", "api_key", "access_token", "token", "KEY"):
            assert await status(served, f"/state?{name}={admin}", bearer(admin)) == 401
            assert await status(served, f"/infer?{name}={admin}") == 401
        host = f"Host: 127.0.0.1:{served.port}\r\n".encode()
        line = f"Authorization: Bearer {admin}\r\n".encode()
        for path in (b"/state", b"/infer"):
            answer = await served.raw(b"GET " + path + b" HTTP/1.1\r\n" + host + line + line + b"\r\n")
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_which_bind_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# -- web pages


async def test_pages_cannot_drive_the_daemon(tmp_path: Path) -> None:
    """H8, P15: the matrix of Host, Origin and Sec-Fetch-Site, on routes that are open to programs."""
    async with serving(tmp_path, lambda port: small_app(port, ROUTES, allow_hosts=("node.lan",))) as served:
        ours = f"127.0.0.1:{served.port}"
        good_hosts = [ours, f"localhost:{served.port}", f"LOCALHOST:{served.port}", f"[::1]:{served.port}", "node.lan"]
        bad_hosts = ["evil.com", f"evil.com:{served.port}", "127.0.0.1", "localhost", "127.0.0.1:1", "",
                     f"127.0.0.1.evil.com:{served.port}", f"localhost.:{served.port}", f"{ours}@evil.com"]  # fmt: skip
        for host in good_hosts:
            assert await status(served, "/infer", {"Host": host}) == 200, host
        for host in bad_hosts:
            assert await status(served, "/infer", {"Host": host}) == 403, host
        good_origins = [f"http://{ours}", f"http://localhost:{served.port}", "https://node.lan"]
        bad_origins = ["null", "http://evil.com", f"http://evil.com:{served.port}", "http://localhost", "file://", "",
                       f"chrome-extension://{ours}", "http://127.0.0.1:1", f"http://{ours}.evil.com", ours]  # fmt: skip
        for origin in good_origins:
            assert await status(served, "/infer", {"Origin": origin}) == 200, origin
        for origin in bad_origins:
            assert await status(served, "/infer", {"Origin": origin}) == 403, origin
        for site, wanted in (("cross-site", 403), ("same-origin", 200), ("none", 200), ("Cross-Site", 403)):
            assert await status(served, "/infer", {"Sec-Fetch-Site": site}) == wanted, site


async def test_probes_are_behind_the_shield_too(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        assert await status(served, "/open", {"Host": "rebound.example"}) == 403
        assert await status(served, "/nothing", {"Host": "rebound.example"}) == 403


async def test_a_request_line_holds_a_path_and_one_host(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        host = f"Host: 127.0.0.1:{served.port}\r\n".encode()
        url = f"http://127.0.0.1:{served.port}/infer".encode()
        assert (await served.raw(b"GET " + url + b" HTTP/1.1\r\n" + host + b"\r\n")).status == 403
        assert (await served.raw(b"GET /infer HTTP/1.1\r\n" + host + host + b"\r\n")).status in (400, 403)
        assert (await served.raw(b"GET /infer HTTP/1.1\r\n\r\n")).status in (400, 403)
        assert (await served.raw(b"GET /infer HTTP/1.1\r\n" + host + b"\r\n")).status == 200


async def test_there_is_no_cors(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served, aiohttp.ClientSession() as session:
        asked = {"Origin": f"http://127.0.0.1:{served.port}", "Access-Control-Request-Method": "GET"}
        async with session.options(served.url + "/infer", headers=asked) as reply:
            assert reply.status == 405
            assert not any(name.lower().startswith("access-control") for name in reply.headers)


def test_a_wildcard_bind_knows_names_and_its_own_addresses_only() -> None:
    origins = Origins.of("0.0.0.0", 8090, ["node.example:443", "fd00::1"])
    assert "0.0.0.0:8090" not in origins.hosts
    assert {"127.0.0.1:8090", "localhost:8090", "node.example:443", "[fd00::1]", "[fd00::1]:8090"} <= origins.hosts
    assert origins.any_local_address
    assert not Origins.of("127.0.0.1", 8090, []).any_local_address


async def test_on_a_wildcard_bind_the_address_a_connection_came_in_on_is_ours(tmp_path: Path) -> None:
    def app(port: int) -> web.Application:
        return small_app(port, (Route("GET", "/open", fine, Surface.OPEN),), host="0.0.0.0")

    async with serving(tmp_path, app) as served:
        assert await status(served, "/open", {"Host": f"127.0.0.1:{served.port}"}) == 200
        assert await status(served, "/open", {"Host": f"10.9.8.7:{served.port}"}) == 403
