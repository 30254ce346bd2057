"""The folder, nodes and upstreams of one run, and clients that measure; all end with it."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from hub_endpoint.upstream import CHECKOUT, MIB, Upstream
from tests.support.node import NodeProcess

__all__ = ["CHECKOUT", "MIB", "Bed", "Read", "client_environment", "first_byte", "run_client"]

TIMEOUT_S = 300.0
REDIRECTS = 3


class Node(NodeProcess):
    """Up, and done with starting, its worker process included: that would compete for the processor."""

    def start(self) -> Self:
        super().start()
        self.request("GET", "/api/accelerators")
        return self


class Bed(ExitStack):
    """rounds: of everything that is repeated. sample: folder of a small model that transformers loads."""

    def __init__(self, folder: Path, *, rounds: int, requests: int, mib: int, sample: Path) -> None:
        super().__init__()
        self.folder, self.rounds, self.requests, self.mib, self.sample = folder, rounds, requests, mib, sample
        self._names = 0

    def new(self, name: str) -> Path:
        """An empty folder of its own."""
        self._names += 1
        path = self.folder / f"{self._names}-{name}"
        path.mkdir(mode=0o700)
        return path

    def upstream(self, repos: dict[str, dict[str, Any]], *, one_origin: bool = True) -> Upstream:
        return self.enter_context(Upstream(self.new("upstream"), repos, one_origin=one_origin))

    def node(self, upstream: Upstream, *arguments: str) -> Node:
        return self.enter_context(Node(self.new("cache"), "--hf-upstream", upstream.url, *arguments))


@dataclass(frozen=True)
class Read:
    """One file read to its end. first_s: from the request to the first byte of the file."""

    first_s: float
    whole_s: float
    sha256: str


def first_byte(origin: str, path: str) -> Read:
    """GET, with the redirects within the origin, over a connection that is open already."""
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=TIMEOUT_S)
    connection.connect()
    try:
        began = time.perf_counter()
        for _ in range(REDIRECTS):
            connection.request("GET", path)
            reply = connection.getresponse()
            if reply.status != 302:
                break
            path = reply.headers["Location"].removeprefix(origin)
            reply.read()
        if reply.status != 200:
            raise SystemExit(f"{origin}{path} answers {reply.status}")
        first = reply.read1(1)
        first_s = time.perf_counter() - began
        digest = hashlib.sha256(first)
        while piece := reply.read(MIB):
            digest.update(piece)
        return Read(first_s, time.perf_counter() - began, digest.hexdigest())
    finally:
        connection.close()


def client_environment(home: Path, endpoint: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def run_client(script: str, *arguments: str, home: Path, endpoint: str) -> str:
    """The last line that a Python program says. Raises SystemExit if it fails."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=client_environment(home, endpoint),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"a client failed: {ran.stderr[-3000:]}")
    return ran.stdout.splitlines()[-1]
