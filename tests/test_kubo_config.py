"""What needs no daemon: addresses and their secrets, the table of calls, settings of a child, import options."""

from __future__ import annotations

import base64
import os
import random
import subprocess
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.build import Profile, file_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.errors import InvalidConfig, Unavailable
from ipfs_accelerate_node.kubo.binary import checked_version, find_binary
from ipfs_accelerate_node.kubo.calls import CALLS, Feature, allowed_paths
from ipfs_accelerate_node.kubo.endpoint import endpoint, endpoint_of_repo
from ipfs_accelerate_node.kubo.layout import imports
from ipfs_accelerate_node.kubo.settings import Access, Network, configured, peer_id
from tests.support.kubo import CHECKOUT

SEED = bytes(range(32))


@pytest.mark.parametrize(
    ("address", "url", "multiaddr"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("https://kubo.example/api/v0/", "https://kubo.example:443", "/dns/kubo.example/tcp/443/https"),
        ("/dns4/kubo.example/tcp/443/https", "https://kubo.example:443", "/dns/kubo.example/tcp/443/https"),
    ],
)
def test_an_address_in_every_spelling(address: str, url: str, multiaddr: str) -> None:
    place = endpoint(address)
    assert (place.url, place.multiaddr, place.headers) == (url, multiaddr, {})


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "ftp://127.0.0.1:5001",
        "http://",
        "http://127.0.0.1:99999",
        "http://user:password@127.0.0.1:5001",
        "http://127.0.0.1:5001/other",
        "http://127.0.0.1:5001?x=1",
        "http://кубо:5001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/5001",
        "/nonsense",
    ],
)
def test_a_bad_address_is_a_config_error(address: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        endpoint(address)
    assert "password" not in str(refused.value)


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        ("bearer:canary", "Bearer canary"),
        ("basic:me:a:b", "Basic " + base64.b64encode(b"me:a:b").decode()),
    ],
)
def test_authorization_is_sent_and_never_shown(auth: str, header: str) -> None:
    place = endpoint("http://127.0.0.1:5001", auth)
    assert place.headers == {"Authorization": header}
    assert "canary" not in repr(place)
    assert header not in repr(place)


@pytest.mark.parametrize("auth", ["", "canary", "bearer:", "bearer:a\nb", "basic:canary", "digest:canary"])
def test_bad_authorization_does_not_leak(auth: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        endpoint("http://127.0.0.1:5001", auth)
    assert "canary" not in str(refused.value)


def test_a_repo_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refused:
        endpoint_of_repo(tmp_path)
    assert refused.value.code == "kubo_unavailable"
    (tmp_path / "api").write_text("/ip4/127.0.0.1/tcp/4242\n")
    assert endpoint_of_repo(tmp_path).url == "http://127.0.0.1:4242"


def test_the_table_of_calls_grows_with_the_features_only() -> None:
    store, publish = allowed_paths([]), allowed_paths([Feature.PUBLISH])
    assert set(publish) - set(store) == {"/api/v0/key/import", "/api/v0/key/list", "/api/v0/name/publish"}
    assert set(allowed_paths([Feature.TUNNEL])) - set(store) == {
        f"/api/v0/{path}" for path in ("swarm/connect", "p2p/listen", "p2p/forward", "p2p/close", "p2p/ls")
    }
    assert set(allowed_paths(list(Feature))) == {f"/api/v0/{call.path}" for call in CALLS}
    for forbidden in ("config", "repo/gc", "key/export", "key/gen", "shutdown", "p2p", "log", "cat", "get"):
        assert not any(f"/api/v0/{forbidden}".startswith(path) for path in allowed_paths(list(Feature)))


def settings(*, bootstrap: tuple[str, ...] | None = None, private: bool = False, loopback: bool = False) -> dict:  # type: ignore[type-arg]
    base = {"Bootstrap": ["auto"], "Routing": {}, "Datastore": {"StorageMax": "10GB"}}
    network = Network(bootstrap=bootstrap, private=private, loopback=loopback, swarm_port=4242)
    return configured(base, seed=SEED, network=network, access=Access("canary", ["/api/v0/id"]))


def test_settings_of_a_child_on_the_public_network() -> None:
    config = settings()
    assert config["Datastore"] == {"StorageMax": "10GB"}  # what init wrote stays
    assert config["Bootstrap"] == ["auto"]
    assert config["Addresses"]["API"] == "/ip4/127.0.0.1/tcp/0"
    assert config["Addresses"]["Gateway"] == []
    assert len(config["Addresses"]["Swarm"]) == 8
    assert all("/4242" in address for address in config["Addresses"]["Swarm"])
    assert config["API"]["Authorizations"]["node"] == {
        "AuthSecret": "bearer:canary",
        "AllowedPaths": ["/api/v0/id"],
    }
    assert config["Provide"]["Strategy"] == "roots"
    assert "canary" not in repr(Access("canary", []))


def test_settings_of_a_child_on_a_private_network() -> None:
    config = settings(private=True)
    assert config["Bootstrap"] == []
    assert config["Addresses"]["Swarm"] == ["/ip4/0.0.0.0/tcp/4242", "/ip6/::/tcp/4242"]
    assert not config["AutoConf"]["Enabled"]
    assert not config["AutoTLS"]["Enabled"]
    assert config["Routing"] == {"Type": "dht", "DelegatedRouters": []}


def test_settings_of_a_child_on_loopback() -> None:
    config = settings(loopback=True, bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/x",))
    assert config["Bootstrap"] == ["/ip4/127.0.0.1/tcp/1/p2p/x"]
    assert config["Addresses"]["Swarm"] == ["/ip4/127.0.0.1/tcp/4242"]
    assert config["Discovery"]["MDNS"] == {"Enabled": False}
    assert config["Routing"]["LoopbackAddressesOnLanDHT"] is True


def test_identity_is_the_key_in_the_form_that_kubo_writes() -> None:
    config = settings()["Identity"]
    message = base64.b64decode(config["PrivKey"])
    assert message[:36] == b"\x08\x01\x12\x40" + SEED
    assert len(message) == 68
    assert config["PeerID"] == peer_id(SEED)
    assert peer_id(SEED).startswith("12D3Koo")


def plan_of(chunk: int, size: int, width: int = 1024) -> tuple[FilePlan, dict[Cid, bytes]]:
    data = random.Random(size).randbytes(size)
    parts = [(at, data[at : at + chunk]) for at in range(0, max(size, 1), chunk)]
    leaves = [Leaf(Cid.of(part), at, len(part)) for at, part in parts]
    built = file_dag(leaves, Profile(chunk, width, 262144))
    return FilePlan("f", built.cid, size, tuple(leaves)), dict(built.nodes)


@pytest.mark.parametrize(
    ("chunk", "size", "width", "expected"),
    [
        (1000, 0, 1024, {"chunker": "size-1", "max-file-links": "1024"}),
        (1000, 1000, 1024, {"chunker": "size-1000", "max-file-links": "1024"}),
        (1000, 1001, 1024, {"chunker": "size-1000", "max-file-links": "1024"}),
        (10, 95, 3, {"chunker": "size-10", "max-file-links": "3"}),
        (10, 1740, 174, {"chunker": "size-10", "max-file-links": "1024"}),
        (10, 1750, 174, {"chunker": "size-10", "max-file-links": "174"}),
    ],
    ids=["empty", "one leaf", "two leaves", "three levels", "one full node", "one leaf more"],
)
def test_import_options_are_read_off_the_dag(chunk: int, size: int, width: int, expected: dict[str, str]) -> None:
    file, nodes = plan_of(chunk, size, width)
    (way,) = imports(file, nodes)
    assert way.fixed
    assert dict(way.options) == expected | {"cid-version": "1", "raw-leaves": "true", "hash": "sha2-256"}


def test_leaves_that_no_chunker_cuts() -> None:
    def plan(*lengths: int, prefix: bytes = b"") -> FilePlan:
        leaves, at = [], 0
        for length in lengths:
            leaves.append(Leaf(Cid.of(bytes([length % 251])), at, length, prefix))
            at += length
        return FilePlan("f", Cid.of(b""), at, tuple(leaves))

    assert imports(plan(1000, 2000, 1500), {}) == []
    assert imports(plan(1000, 2000), {}) == []
    assert imports(plan(2 << 20), {}) == []
    assert imports(plan(1000, 500, prefix=b"\x0a"), {}) == []
    ways = imports(plan(200_000, 300_000, 100), {})
    assert [dict(way.options)["chunker"] for way in ways] == ["buzhash", "rabin"]
    assert not any(way.fixed for way in ways)


async def test_a_binary_that_is_not_kubo(tmp_path: Path) -> None:
    for text, reason in (("hello", "is not Kubo"), ("0.30.0", "too old")):
        (program := tmp_path / "ipfs").write_text(f"#!/bin/sh\necho {text}\n")
        program.chmod(0o755)
        with pytest.raises(Unavailable, match=reason):
            await checked_version(program)
    with pytest.raises(Unavailable, match="cannot run"):
        await checked_version(tmp_path / "absent")


def test_where_the_binary_is_looked_for(tmp_path: Path) -> None:
    (program := tmp_path / "ipfs").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_binary(Path("/named"), search_path=str(tmp_path)) == Path("/named")
    assert find_binary(None, search_path=str(tmp_path)) == program
    built = CHECKOUT / ".kubo" / "ipfs"
    assert find_binary(None, search_path="/nonexistent") == (built if built.is_file() else None)


def test_install_kubo_without_kubo_and_go_says_what_is_missing(tmp_path: Path) -> None:
    (tools := tmp_path / "bin").mkdir()
    for name in ("bash", "sed", "sort", "head", "dirname", "mkdir", "mv", "rm"):
        (tools / name).symlink_to(next(p for d in os.defpath.split(":") if (p := Path(d) / name).exists()))
    (scripts := tmp_path / "checkout" / "scripts" / "kubo").mkdir(parents=True)
    for name in ("install-kubo", "kubo/go.mod", "kubo/go.sum"):
        (scripts.parent / name).write_bytes((CHECKOUT / "scripts" / name).read_bytes())
    command = ["bash", str(scripts.parent / "install-kubo")]

    def install() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False, timeout=10
        )

    nothing = install()
    assert (nothing.returncode, nothing.stdout) == (3, "")
    assert len(nothing.stderr.splitlines()) == 1
    assert "nor Go" in nothing.stderr
    (go := tools / "go").write_text("#!/bin/sh\necho go1.21.0\n")
    go.chmod(0o755)
    assert "needs Go 1.26" in install().stderr
    (ipfs := tools / "ipfs").write_text("#!/bin/sh\necho 0.43.1\n")
    ipfs.chmod(0o755)
    assert install().stdout == f"{ipfs}\n"


def test_without_public_services_no_resolver_of_theirs_is_asked() -> None:
    written = {"DNS": {"Resolvers": {".": "auto"}}, "Routing": {"DelegatedRouters": ["auto"], "Kept": 1}}
    network = Network(bootstrap=(), private=False, loopback=True, swarm_port=4001)
    got = configured(written, seed=bytes(32), network=network, access=Access("s", ()))
    assert got["DNS"] == {"Resolvers": {}}
    assert got["Routing"]["DelegatedRouters"] == []
    assert got["Routing"]["Kept"] == 1
    assert written["DNS"] == {"Resolvers": {".": "auto"}}
