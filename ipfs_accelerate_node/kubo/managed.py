"""A private Kubo child: its repo under the cache, its identity the node key, its API for us alone.

Who owns what: the repo (``<cache>/kubo``) belongs to one daemon of this node at a time, which the store's lock
ensures. A crash loses nothing that is needed: blocks of files are references into the store, and the rest is written
again by seeding. The child does not outlive us: the kernel kills it when we die (Linux), and a child of a dead daemon
that is still there (elsewhere, or in the instant before that) is ended at the next start by the pid and start time it
was recorded with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import select
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.errors import InvalidConfig, StorageError, Unavailable
from ipfs_accelerate_node.kubo.calls import Feature, allowed_paths
from ipfs_accelerate_node.kubo.endpoint import Endpoint, endpoint_of_repo
from ipfs_accelerate_node.kubo.settings import Access, Network, configured

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_CHILD_RECORD = "node-child.json"
_SWARM_KEY_HEAD = "/key/swarm/psk/1.0.0/"

# Run as a program of its own rather than between fork and exec, where a process with threads may deadlock.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Child:
    """What a managed daemon is to be. seed: of the node key. bootstrap: None is the public network."""

    binary: Path
    repo: Path
    seed: bytes = field(repr=False)
    swarm_key: Path | None = None
    bootstrap: tuple[str, ...] | None = None
    loopback: bool = False
    features: Collection[Feature] = ()


class Running:
    """A child that said it is ready. place: its RPC API. exited: set when the process has ended."""

    def __init__(self, process: asyncio.subprocess.Process, place: Endpoint, output: deque[str]) -> None:
        self.pid = process.pid
        self.place = place
        self._process = process
        self._output = output

    def kill(self) -> None:
        """For a child that no longer listens."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """Waits until it has ended; how it ended, in one line."""
        status = await self._process.wait()
        return f"Kubo ended with status {status}{_last_words(self._output)}"


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[Running]:
    """Start the child, and end it on leaving: SIGTERM, then after 10 s SIGKILL.

    Raises Unavailable (kubo_unavailable) with Kubo's last words when it does not become ready, StorageError when the
    repo cannot be written, InvalidConfig for an unusable swarm key.
    """
    secret = secrets.token_hex(32)
    await prepare(child, secret)
    process = await _spawn(child)
    output: deque[str] = deque(maxlen=20)
    ready = asyncio.get_running_loop().create_future()
    reader = asyncio.create_task(_follow(process, output, ready), name="kubo output")
    try:
        await asyncio.to_thread(_record_child, child.repo, process.pid)
        await _until_ready(ready, output)
        place = await asyncio.to_thread(endpoint_of_repo, child.repo, f"bearer:{secret}")
        yield Running(process, place, output)
    finally:
        await _end(process)
        await reader


async def prepare(child: Child, secret: str) -> None:
    """A repo that is ready for its daemon: made if it is not there, configured anew, nobody else on it."""
    repo = child.repo
    try:
        await asyncio.to_thread(_end_orphan, repo)
        if not (repo / "config").is_file():
            await _init(child)
        await asyncio.to_thread(_configure, child, secret)
    except OSError as exc:
        raise StorageError(f"cannot write the Kubo repo {repo}: {exc.strerror or exc}") from exc


async def _init(child: Child) -> None:
    """Beside the final place, then renamed: a repo is whole or not there."""
    fresh = child.repo.with_name(child.repo.name + ".new")
    await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
    await asyncio.to_thread(fresh.mkdir, 0o700, parents=True)
    process = await asyncio.create_subprocess_exec(
        child.binary,
        "init",
        "--empty-repo",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(fresh, private=False),
    )
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            _, complaint = await process.communicate()
    except TimeoutError as exc:
        raise _unavailable("`ipfs init` does not come to an end") from exc
    finally:
        await _end(process)
    if process.returncode != 0:
        raise _unavailable(f"`ipfs init` failed: {complaint.decode(errors='replace').strip()[-300:]}")
    await asyncio.to_thread(shutil.rmtree, child.repo, ignore_errors=True)  # without a config it is no repo
    await asyncio.to_thread(fresh.rename, child.repo)


def _configure(child: Child, secret: str) -> None:
    repo = child.repo
    repo.chmod(0o700)
    path = repo / "config"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise StorageError(f"{path} is not JSON: remove {repo} to have it made anew") from exc
    _install_swarm_key(child.swarm_key, repo / "swarm.key")
    network = Network(
        bootstrap=child.bootstrap,
        private=child.swarm_key is not None,
        loopback=child.loopback,
        swarm_port=_swarm_port(config),
    )
    access = Access(secret, allowed_paths(child.features))
    wanted = configured(config, seed=child.seed, network=network, access=access)
    _write_private(path, json.dumps(wanted, indent=2).encode())
    (repo / "api").unlink(missing_ok=True)  # of the last run


def _install_swarm_key(source: Path | None, target: Path) -> None:
    if source is None:
        target.unlink(missing_ok=True)
        return
    try:
        key = source.read_bytes()
    except OSError as exc:
        raise InvalidConfig(f"cannot read the swarm key {source}: {exc.strerror}", param="swarm_key") from exc
    lines = key.decode("ascii", errors="replace").split()
    if len(lines) != 3 or lines[0] != _SWARM_KEY_HEAD or not lines[1].startswith("/base"):
        raise InvalidConfig(f"{source} is no swarm key (first line {_SWARM_KEY_HEAD})", param="swarm_key")
    _write_private(target, key)


def _swarm_port(config: dict[str, Any]) -> int:
    """The one of the last start, so that others find us again, unless somebody took it meanwhile."""
    addresses = config.get("Addresses", {}).get("Swarm") or []
    ports = {int(match[1]) for a in addresses if (match := re.search(r"/(?:tcp|udp)/(\d+)", str(a)))}
    kept = ports.pop() if len(ports) == 1 else 0
    if kept not in (0, 4001) and (port := _free_port(kept)):  # 4001: Kubo's default, left to a daemon of the user
        return port
    return _free_port(0)


def _free_port(wanted: int) -> int:
    """wanted (0: any), if both TCP and UDP are free there, else 0."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind(("", wanted))
            port = int(tcp.getsockname()[1])
            udp.bind(("", port))
        except OSError:
            return 0
    return port


def _write_private(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# --- the process


def _environment(repo: Path, *, private: bool) -> dict[str, str]:
    """All the child sees: none of our own environment, which may hold tokens."""
    always = {"IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off", "HOME": str(repo), "PATH": os.defpath}
    return always | ({"LIBP2P_FORCE_PNET": "1"} if private else {})


async def _spawn(child: Child) -> asyncio.subprocess.Process:
    command = [str(child.binary), "daemon", "--migrate=true"]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(child.repo, private=child.swarm_key is not None),
            start_new_session=True,  # Ctrl-C in the terminal is for us; we stop it in order
        )
    except OSError as exc:
        raise _unavailable(f"cannot run the Kubo binary {child.binary}: {exc.strerror}") from exc


async def _follow(process: asyncio.subprocess.Process, output: deque[str], ready: asyncio.Future[bool]) -> None:
    """Keep the pipe empty, remember the last lines, and say when the daemon is ready (or never will be)."""
    assert process.stdout is not None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # a line beyond the reader's limit; the reader has dropped it
            continue
        if not line:
            break
        text = line.decode(errors="replace").rstrip()[:500]
        output.append(text)
        log.debug("kubo.says %s", text)
        if text == "Daemon is ready" and not ready.done():
            ready.set_result(True)
    if not ready.done():
        ready.set_result(False)


async def _until_ready(ready: asyncio.Future[bool], output: deque[str]) -> None:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            came_up = await ready
    except TimeoutError as exc:
        raise _unavailable(f"Kubo was not ready after {_START_TIMEOUT_S:g} s{_last_words(output)}") from exc
    if not came_up:
        raise _unavailable(f"Kubo did not start{_last_words(output)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End this process of ours, gently first; also when we are being cancelled meanwhile."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as exc:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(exc, asyncio.CancelledError):
            raise


def _last_words(output: deque[str]) -> str:
    said = [line for line in output if line.startswith("Error") or "error" in line.lower()] or list(output)[-1:]
    return f": {said[-1]}" if said else ""


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, code="kubo_unavailable")


# --- a child that a dead daemon left behind


def _record_child(repo: Path, pid: int) -> None:
    _write_private(repo / _CHILD_RECORD, json.dumps({"pid": pid, "started": _started(pid)}).encode())


def _started(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; None when there is none (or no /proc to tell)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _end_orphan(repo: Path) -> None:
    """End the child of an earlier daemon if that very process still runs: it would hold the repo's lock."""
    try:
        record = json.loads((repo / _CHILD_RECORD).read_bytes())
        pid, started = int(record["pid"]), record["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if started is None or _started(pid) != started:
        return
    log.warning("kubo.orphan pid=%d: a dead daemon's child is ended", pid)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _started(pid) == started:  # the descriptor now pins the process, so the pid cannot change hands
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], _STOP_TIMEOUT_S)
    finally:
        os.close(descriptor)
