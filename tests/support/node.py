"""A whole node as a user runs it: `up` in its own process over a cache folder, and the CLI against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

START_TIMEOUT_S = 60.0
CLI_TIMEOUT_S = 120.0
COMMAND = (sys.executable, "-m", "ipfs_accelerate_node")


def environment(cache: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Only what a node of a test may see: no user configuration, no token, no other daemon, no telemetry."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH", "SSL_CERT_FILE")}
    home = cache.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        **kept,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "IPFS_ACCELERATE_NODE_CACHE": str(cache),
        "IPFS_ACCELERATE_NODE_KUBO_LOOPBACK": "true",
        "IPFS_TELEMETRY": "off",
        "PYTHONFAULTHANDLER": "1",
        **({"IPFS_ACCELERATE_NODE_KUBO_BINARY": str(binary)} if (binary := _kubo()) else {}),
        **(extra or {}),
    }


def _kubo() -> Path | None:
    from tests.support.kubo import find_kubo

    return find_kubo()


class NodeProcess:
    """`up` on a free port. Kubo is off unless arguments say otherwise; the log lies beside the cache. within: what the
    commands are run by, such as ``ip netns exec NAME``; it keeps the process."""

    def __init__(
        self, cache: Path, *arguments: str, env: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        self.command = (*within, *COMMAND)
        self.cache = cache
        self.arguments = arguments if any(a.startswith("--kubo") for a in arguments) else ("--kubo", "off", *arguments)
        self.env = environment(cache, env)
        self.log = cache.parent / f"{cache.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.key = ""

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "up", "--port", "0", *self.arguments], env=self.env, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise AssertionError(f"the daemon ended with {code}:\n{self.log.read_text()[-4000:]}")
            try:
                found = json.loads((self.cache / "daemon.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                found = {"pid": None}
            if found["pid"] == self.process.pid:
                self.url, self.key = found["url"], found["key"]
                return self
            _brief_pause()
        raise AssertionError(f"the daemon did not listen:\n{self.log.read_text()[-4000:]}")

    def __enter__(self) -> Self:
        return self.start()

    def wait_for_kubo(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (health := self.request("GET", "/readyz"))["kubo"] != "ready":
            assert time.monotonic() < deadline, health
            _brief_pause()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, timeout_s: float = 30.0) -> int | None:
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout_s)
                raise
        return self.process.returncode

    def kill(self) -> None:
        """What a power cut does to the process: SIGKILL, no goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.tail()}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    def request(self, method: str, path: str, body: object = None) -> Any:
        call = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(call, timeout=CLI_TIMEOUT_S) as reply:
            return json.load(reply)

    def tail(self) -> str:
        return self.log.read_text()[-3000:]

    def rss_peak_bytes(self) -> int:
        """The daemon's own peak resident memory (VmHWM), without its children."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


def _brief_pause() -> None:
    """Between two looks at a file that another process writes; the loop around it has the deadline."""
    time.sleep(0.02)


def disk_bytes(folder: Path) -> int:
    """Blocks on disk below ``folder``, each inode once (hard links are one copy)."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                stat = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_blocks * 512
    return total
