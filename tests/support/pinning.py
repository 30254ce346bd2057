"""A pin of a node in another process, timed from the request to its last event, and models of random bytes to pin."""

from __future__ import annotations

import json
import os
import random
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.node import NodeProcess

MIB = 1 << 20


@dataclass(frozen=True)
class Pinned:
    """seconds: from the request until the last event, on the caller's clock. receipt or error: how it ended."""

    seconds: float
    receipt: dict[str, Any] | None
    error: dict[str, Any] | None

    @property
    def shares(self) -> dict[str, dict[str, Any]]:
        """The receipt's sources by name."""
        assert self.receipt is not None, self.error
        return {share["source"]: share for share in self.receipt["sources"]}


class Pin:
    """A pin under way. Raises TimeoutError when it goes on for longer than allowed."""

    def __init__(self, node: NodeProcess, ref: str, *, timeout_s: float = 600.0, **wanted: Any) -> None:
        self._node = node
        self._began = time.monotonic()
        self._timeout_s = timeout_s
        self.job: dict[str, Any] = node.request("POST", "/api/pins", {"ref": ref, **wanted})

    def states(self) -> Iterator[dict[str, Any]]:
        """Each state of the job as it is told, the last one included."""
        call = urllib.request.Request(
            f"{self._node.url}/api/pins/{self.job['id']}/events",
            headers={"Authorization": f"Bearer {self._node.key}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(call, timeout=60) as reply:
            for line in reply:
                if time.monotonic() - self._began > self._timeout_s:
                    raise TimeoutError(f"a pin goes on for more than {self._timeout_s} s: {self.job}")
                if line.startswith(b"data: "):
                    self.job = json.loads(line.removeprefix(b"data: "))
                    yield self.job

    def wait(self) -> Pinned:
        for _ in self.states():
            """Only the last one counts."""
        return Pinned(time.monotonic() - self._began, self.job["receipt"], self.job["error"])


def pin(node: NodeProcess, ref: str, *, timeout_s: float = 600.0, **wanted: Any) -> Pinned:
    """wanted: further fields of the request, such as ``source``."""
    return Pin(node, ref, timeout_s=timeout_s, **wanted).wait()


def random_model(folder: Path, size_bytes: int, seed: int | None = None) -> Path:
    """A new directory with one large file of random bytes and a small one. seed: for the same bytes every time."""
    folder.mkdir(parents=True)
    source = random.Random(seed) if seed is not None else None
    with (folder / "weights.bin").open("wb") as file:
        for at in range(0, size_bytes, MIB):
            count = min(MIB, size_bytes - at)
            file.write(source.randbytes(count) if source else os.urandom(count))
    (folder / "config.json").write_text(json.dumps({"model_type": "none", "made": folder.name}))
    return folder


def same_files(folder: Path, original: Path) -> bool:
    """Whether both directories hold the same files with the same bytes."""
    names = sorted(p.name for p in original.iterdir())
    return sorted(p.name for p in folder.iterdir()) == names and all(
        _same_bytes(folder / name, original / name) for name in names
    )


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            if (piece := left.read(MIB)) != right.read(MIB):
                return False
            if not piece:
                return True


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """So many ports of loopback, held until the block ends: bind them at once afterwards."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        yield [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()
