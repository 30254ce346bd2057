"""The service: a child that is started, watched, restarted and ended; daemons of others; none at all."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.errors import InvalidConfig, Unavailable
from ipfs_accelerate_node.kubo.service import KuboService, Pace
from ipfs_accelerate_node.kubo.settings import peer_id
from ipfs_accelerate_node.records.key import NodeKey
from tests.support import kubo as fixtures
from tests.support.kubo import CHECKOUT, KuboFactory, ManagedFactory, kubo_binary

managed, kubo_factory = fixtures.managed, fixtures.kubo_factory
pytestmark = pytest.mark.kubo

QUICK = Pace(probe_s=0.1, patience_s=0.5, give_up_s=60, first_retry_s=0.05, last_retry_s=0.5)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kubo"


def config(repo: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((repo / "config").read_text())
    return value


def child(repo: Path) -> int:
    return int(json.loads((repo / "node-child.json").read_text())["pid"])


def alive(pid: int) -> bool:
    """Running, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int, timeout_s: float) -> bool:
    """Waits, without a busy loop, for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended, _, _ = select.select([descriptor], [], [], timeout_s)
    os.close(descriptor)
    return bool(ended)


async def test_the_childs_identity_is_the_node_key(tmp_path: Path, managed: ManagedFactory) -> None:
    key = NodeKey.load_or_create(tmp_path / "node.key")
    assert peer_id(key.seed) == key.peer_id
    async with managed(key_seed=key.seed) as service:
        assert service.state == "starting"
        client = await service.wait_ready(20)
        assert (client.peer_id, client.managed, service.state, service.reason) == (
            key.peer_id,
            True,
            "ready",
            None,
        )
        assert (await client.id())["ID"] == key.peer_id
    with pytest.raises(Unavailable, match="stopped"):
        _ = service.client


async def test_the_repo_is_private_and_the_child_sees_none_of_our_secrets(
    managed: ManagedFactory, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    async with managed() as service:
        await service.wait_ready(20)
        assert stat.S_IMODE(repo.stat().st_mode) == 0o700
        assert stat.S_IMODE((repo / "config").stat().st_mode) == 0o600
        environment = Path(f"/proc/{child(repo)}/environ").read_bytes()
        command = Path(f"/proc/{child(repo)}/cmdline").read_bytes()
    assert b"canary" not in environment
    assert b"IPFS_TELEMETRY=off" in environment
    secret = config(repo)["API"]["Authorizations"]["node"]["AuthSecret"].partition(":")[2]
    assert secret.encode() not in environment + command


async def test_port_and_identity_stay_and_the_secret_does_not(managed: ManagedFactory, repo: Path) -> None:
    seen = []
    for _ in range(2):
        async with managed() as service:
            client = await service.wait_ready(20)
            seen.append((client.peer_id, await client.addresses(), config(repo)["API"]))
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][2] != seen[1][2]


async def test_a_swarm_port_that_somebody_took(managed: ManagedFactory, repo: Path) -> None:
    async with managed() as service:
        await service.wait_ready(20)
    port = int(config(repo)["Addresses"]["Swarm"][0].rpartition("/")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        async with managed() as service:
            (address,) = await (await service.wait_ready(20)).addresses()
    assert f"/{port}/" not in address


async def test_a_new_node_key_becomes_the_identity_of_an_old_repo(managed: ManagedFactory) -> None:
    for seed in (bytes(32), bytes(range(32))):
        async with managed(key_seed=seed) as service:
            assert (await service.wait_ready(20)).peer_id == peer_id(seed)


async def test_kill_9_of_the_child_is_mended(managed: ManagedFactory, repo: Path) -> None:
    async with managed(pace=QUICK) as service:
        before = await service.next_ready(None)
        first = child(repo)
        os.kill(first, signal.SIGKILL)
        await service.wait_for("down", timeout_s=10)
        assert service.reason is not None
        assert "ended with status -9" in service.reason
        began = time.monotonic()
        after = await service.next_ready(before)
        assert time.monotonic() - began < 10
        assert after.peer_id == before.peer_id
        assert child(repo) != first
        with pytest.raises(Unavailable):
            await before.id()
    assert not alive(child(repo))


async def test_a_stopped_child_is_down_and_ready_again_when_it_goes_on(managed: ManagedFactory, repo: Path) -> None:
    async with managed(pace=QUICK) as service:
        client = await service.wait_ready(20)
        pid = child(repo)
        os.kill(pid, signal.SIGSTOP)
        await service.wait_for("down", timeout_s=10)
        with pytest.raises(Unavailable, match="did not answer"):
            _ = service.client
        os.kill(pid, signal.SIGCONT)
        assert await service.wait_ready(10) is client
        assert child(repo) == pid


@pytest.mark.timeout(60)
async def test_a_child_that_stays_silent_is_replaced(managed: ManagedFactory, repo: Path) -> None:
    pace = Pace(probe_s=0.1, patience_s=0.5, give_up_s=1, first_retry_s=0.05)
    async with managed(pace=pace) as service:
        await service.wait_ready(20)
        first = child(repo)
        os.kill(first, signal.SIGSTOP)
        await service.wait_for("down", timeout_s=10)
        await service.wait_ready(30)
        assert child(repo) != first
        assert not alive(first)


OWNER = """
import asyncio, sys
from pathlib import Path
from ipfs_accelerate_node.kubo.service import KuboService

async def main():
    service = KuboService(mode="managed", cache=Path(sys.argv[1]), binary=Path(sys.argv[2]),
                          key_seed=bytes(32), bootstrap=(), loopback=True)
    async with service:
        await service.wait_ready(20)
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process whose service is ready on the same cache."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "cache"), str(kubo_binary())]
    (tmp_path / "cache").mkdir()
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


async def test_kill_9_of_the_daemon_leaves_no_orphan(
    owner: subprocess.Popen[str], managed: ManagedFactory, repo: Path
) -> None:
    pid = child(repo)
    owner.kill()
    owner.wait()
    assert gone(pid, 5)
    began = time.monotonic()
    async with managed() as service:
        await service.wait_ready(10)
        assert time.monotonic() - began < 10
    assert not (repo / "api").exists() or child(repo) != pid


async def test_an_orphan_that_holds_the_lock_is_ended(managed: ManagedFactory, repo: Path, tmp_path: Path) -> None:
    async with managed() as service:
        await service.wait_ready(20)
    environment = {"IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off", "HOME": str(repo)}
    with subprocess.Popen([kubo_binary(), "daemon"], env=environment, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout is not None
        assert any(line.strip() == "Daemon is ready" for line in orphan.stdout)
        started = Path(f"/proc/{orphan.pid}/stat").read_text().rpartition(")")[2].split()[19]
        record = repo / "node-child.json"

        record.write_text(json.dumps({"pid": orphan.pid, "started": started + "0"}))
        async with managed() as service:  # the pid was used again by somebody else, it seems: hands off
            await service.wait_for("down", timeout_s=15)
            assert service.reason is not None
            assert "lock" in service.reason
        assert orphan.poll() is None

        record.write_text(json.dumps({"pid": orphan.pid, "started": started}))
        async with managed() as service:
            await service.wait_ready(10)
        assert orphan.wait(5) == -signal.SIGKILL


async def test_what_a_crash_may_leave_behind_is_no_obstacle(managed: ManagedFactory, repo: Path) -> None:
    (fresh := repo.with_name("kubo.new")).mkdir(parents=True)
    (fresh / "config").write_text("{")
    (repo / "blocks").mkdir(parents=True)  # no config: the old way of init was cut short
    async with managed() as service:
        await service.wait_ready(20)
    (repo / "repo.lock").write_text("")
    (repo / "api").write_text("/ip4/127.0.0.1/tcp/1")
    (repo / "config.new").write_text("half")
    (repo / "node-child.json").write_text("{")
    async with managed() as service:
        await service.wait_ready(20)


async def test_leaving_while_it_starts_leaves_no_process(managed: ManagedFactory, repo: Path) -> None:
    async with managed() as service:
        await service.wait_ready(20)
    first = child(repo)
    async with managed() as service:
        while child(repo) == first:  # noqa: ASYNC110 - a file is watched
            await asyncio.sleep(0)
    assert not alive(child(repo))


async def test_a_repo_that_cannot_be_read(managed: ManagedFactory, repo: Path) -> None:
    async with managed() as service:
        await service.wait_ready(20)
    (repo / "config").write_text("{")
    async with managed() as service:
        with pytest.raises(Unavailable, match="to have it made anew"):
            await service.wait_ready(1)


async def test_no_binary_is_said_at_once(managed: ManagedFactory) -> None:
    async with managed(binary=None) as service:
        with pytest.raises(Unavailable, match="scripts/install-kubo"):
            await service.wait_ready(20)
        assert service.state == "down"
    async with managed(binary=Path("/bin/false")) as service:
        with pytest.raises(Unavailable, match="is not Kubo"):
            await service.wait_ready(20)


async def test_off_is_a_mode(tmp_path: Path) -> None:
    async with KuboService(mode="off", cache=tmp_path) as service:
        assert service.state == "off"
        with pytest.raises(Unavailable) as refused:
            await service.wait_ready(20)
        assert refused.value.code == "kubo_unavailable"


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig):
        KuboService(mode="managed", cache=tmp_path, key_seed=b"short")
    with pytest.raises(InvalidConfig):
        KuboService(mode="external", cache=tmp_path)
    with pytest.raises(InvalidConfig):
        KuboService(mode="external", cache=tmp_path, url="http://user:password@127.0.0.1:5001")


# --- a private network


def swarm_key(path: Path) -> Path:
    path.write_text("/key/swarm/psk/1.0.0/\n/base16/\n" + os.urandom(32).hex() + "\n")
    return path


@pytest.mark.timeout(60)
async def test_a_private_network_admits_only_those_with_the_key(
    managed: ManagedFactory, kubo_factory: KuboFactory, tmp_path: Path
) -> None:
    key = swarm_key(tmp_path / "swarm.key")
    member = kubo_factory(swarm_key=key.read_bytes())
    stranger = kubo_factory()
    async with managed(swarm_key=key, features=["tunnel"]) as service:
        client = await service.wait_ready(20)
        (address,) = await client.addresses()
        await client.connect(member.addr)
        assert client.peer_id in member.cli("swarm", "peers")
        with pytest.raises(subprocess.CalledProcessError):
            stranger.cli("swarm", "connect", address)
    async with managed() as service:  # and without the key the same repo is on the open network again
        (address,) = await (await service.wait_ready(20)).addresses()
        stranger.cli("swarm", "connect", address)


async def test_a_bad_swarm_key_never_means_an_open_network(managed: ManagedFactory, tmp_path: Path) -> None:
    (bad := tmp_path / "bad").write_text("/key/swarm/psk/2.0.0/\n/base16/\n00\n")
    for path in (bad, tmp_path / "absent"):
        async with managed(swarm_key=path) as service:
            with pytest.raises(Unavailable, match="swarm key"):
                await service.wait_ready(2)


# --- a daemon of the user's


async def test_an_external_daemon_by_url_and_authorization(kubo_factory: KuboFactory, tmp_path: Path) -> None:
    scope = {"me": {"AuthSecret": "basic:me:canary", "AllowedPaths": ["/api/v0"]}}
    daemon = kubo_factory(config={"API.Authorizations": scope})
    settings: dict[str, Any] = {"mode": "external", "cache": tmp_path, "url": daemon.api_url, "pace": QUICK}
    async with KuboService(**settings, auth="basic:me:canary") as service:
        client = await service.wait_ready(20)
        assert (client.peer_id, client.managed) == (daemon.peer_id, False)
    assert daemon.cli("--api-auth", "basic:me:canary", "version", "--number") == client.version
    async with KuboService(**settings, auth="basic:me:wrong") as service:
        with pytest.raises(Unavailable, match="given authorization"):
            await service.wait_ready(1)


async def test_an_external_daemon_that_comes_and_goes(kubo_factory: KuboFactory, tmp_path: Path) -> None:
    daemon = kubo_factory()
    settings: dict[str, Any] = {"mode": "external", "cache": tmp_path, "pace": QUICK}
    async with KuboService(**settings, ipfs_path=daemon.repo) as service:
        before = await service.wait_ready(20)
        daemon.stop()
        await service.wait_for("down", timeout_s=10)
        await asyncio.to_thread(daemon.start)
        after = await service.wait_ready(10)
        assert after.peer_id == before.peer_id
        os.kill(daemon.pid, signal.SIGSTOP)
        await service.wait_for("down", timeout_s=10)
        os.kill(daemon.pid, signal.SIGCONT)
        await service.wait_ready(10)
    assert daemon.cli("id", "-f", "<id>") == daemon.peer_id  # leaving does not end what is not ours
