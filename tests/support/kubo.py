"""Real Kubo daemons for tests: loopback only, no bootstrap but what a test gives, no helper services, no telemetry.

A test module takes the fixtures it wants by assignment: ``managed, kubo_factory = kubo.managed, kubo.kubo_factory``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import pytest

from ipfs_accelerate_node.kubo.service import KuboService

CHECKOUT = Path(__file__).resolve().parents[2]


def find_kubo() -> Path | None:
    """IPFS_ACCELERATE_NODE_KUBO_BINARY, else `ipfs` on PATH, else the one that scripts/install-kubo built."""
    named = os.environ.get("IPFS_ACCELERATE_NODE_KUBO_BINARY") or shutil.which("ipfs")
    binary = Path(named) if named else CHECKOUT / ".kubo" / "ipfs"
    return binary if binary.is_file() else None


def kubo_binary() -> Path:
    binary = find_kubo()
    assert binary is not None, "no Kubo binary: run scripts/install-kubo"
    return binary


class KuboDaemon:
    """One `ipfs daemon` on a new repo, up when constructed; a context manager that stops it.

    config: further settings by dotted name, such as ``{"Experimental.FilestoreEnabled": True}``.
    """

    def __init__(
        self,
        repo: Path,
        *,
        config: Mapping[str, object] | None = None,
        bootstrap: Sequence[str] = (),
        swarm_key: bytes | None = None,
    ) -> None:
        self.repo = repo
        self._env = {"IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off", "HOME": str(repo), "PATH": os.defpath}
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None
        repo.mkdir(parents=True)
        self.cli("init", "--profile=test", "--empty-repo")
        settings = json.loads((repo / "config").read_text())
        settings["Bootstrap"] = list(bootstrap)
        settings["Addresses"]["Gateway"] = []
        for name, value in (config or {}).items():
            _set(settings, name.split("."), value)
        (repo / "config").write_text(json.dumps(settings))
        if swarm_key is not None:
            (repo / "swarm.key").write_bytes(swarm_key)
        self.peer_id: str = settings["Identity"]["PeerID"]
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Blocks until the daemon says that it is ready."""
        process = subprocess.Popen(
            [kubo_binary(), "daemon"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env,
        )
        self._process = process
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.strip() == "Daemon is ready":
                break
        else:
            self.stop()
            raise RuntimeError("Kubo did not start:\n" + "".join(said))
        self._drain = threading.Thread(target=process.stdout.read, daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def api_url(self) -> str:
        """``http://127.0.0.1:PORT`` of the RPC API."""
        parts = (self.repo / "api").read_text().strip().split("/")
        return f"http://{parts[2]}:{parts[4]}"

    @property
    def addr(self) -> str:
        """A multiaddr to dial or to bootstrap from."""
        listed = json.loads(self.cli("id"))["Addresses"]
        return next(str(a) for a in listed if str(a).startswith("/ip4/127.0.0.1/"))

    def cli(self, *args: str | Path, timeout_s: float = 30.0) -> str:
        """What this `ipfs` command prints. Raises CalledProcessError, with its stderr."""
        done = subprocess.run(
            [kubo_binary(), *map(str, args)],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        return done.stdout.strip()

    def block(self, cid: str, timeout_s: float = 30.0) -> bytes:
        """The block's bytes, from wherever this daemon gets them."""
        return subprocess.run(
            [kubo_binary(), "block", "get", cid], env=self._env, capture_output=True, timeout=timeout_s, check=True
        ).stdout

    def stop(self) -> None:
        """Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._drain is not None:
            self._drain.join()
        assert process.stdout is not None
        process.stdout.close()


def _set(settings: dict[str, Any], name: Sequence[str], value: object) -> None:
    for part in name[:-1]:
        settings = settings.setdefault(part, {})
    settings[name[-1]] = value


class KuboFactory(Protocol):
    def __call__(
        self,
        *,
        config: Mapping[str, object] | None = None,
        bootstrap: Sequence[str] = (),
        swarm_key: bytes | None = None,
    ) -> KuboDaemon: ...


@pytest.fixture(scope="module")
def kubo_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboFactory]:
    """Starts daemons; all are stopped at the end of the module."""
    daemons: list[KuboDaemon] = []

    def start(
        *,
        config: Mapping[str, object] | None = None,
        bootstrap: Sequence[str] = (),
        swarm_key: bytes | None = None,
    ) -> KuboDaemon:
        repo = tmp_path_factory.mktemp("kubo") / "repo"
        daemons.append(KuboDaemon(repo, config=config, bootstrap=bootstrap, swarm_key=swarm_key))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.stop()


@pytest.fixture(scope="module")
def kubo_hub(kubo_factory: KuboFactory) -> KuboDaemon:
    """A DHT server on loopback to bootstrap from: how daemons that do not know each other meet."""
    return kubo_factory(config={"Routing.Type": "dhtserver"})


class ManagedFactory(Protocol):
    def __call__(self, name: str = "cache", **settings: Any) -> KuboService: ...


@pytest.fixture
def managed(tmp_path: Path) -> ManagedFactory:
    """Makes (does not start) a service with a private child; equal names share repo and key."""

    def make(name: str = "cache", **settings: Any) -> KuboService:
        (cache := tmp_path / name / "blobs").mkdir(parents=True, exist_ok=True)
        chosen: dict[str, Any] = {
            "mode": "managed",
            "cache": cache.parent,
            "binary": kubo_binary(),
            "key_seed": hashlib.sha256(name.encode()).digest(),
            "bootstrap": (),
            "loopback": True,
        }
        return KuboService(**(chosen | settings))

    return make
