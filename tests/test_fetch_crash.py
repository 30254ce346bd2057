"""kill -9 in the middle of a fetch, again and again: what was brought once is not brought again.

After each kill the test itself reads what the node left in `partial/`: the record of what is durable, and the bytes. A
leaf whose bytes are right is there, recorded or not, and must not be asked for again.
"""

from __future__ import annotations

import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.capped import LEAF_BYTES, FileServer, Sent, describe
from tests.support.node import NodeProcess
from tests.support.pinning import MIB, Pin, pin, random_model, same_files

RATE_BYTES = 100_000_000  # of each source
WAIT_S = 120.0
HEAD = struct.Struct("<8sQ")
ENTRY = struct.Struct("<QQI")


@dataclass(frozen=True)
class Left:
    """Leaves of the large file, by number. recorded: durable, by the node's record. there: the bytes are right."""

    recorded: frozenset[int]
    there: frozenset[int]


def what_is_left(cache: Path, cid: str, original: Path) -> Left:
    part, record = cache / "partial" / cid, cache / "partial" / f"{cid}.have"
    if not part.exists():
        return Left(frozenset(), frozenset())
    size = original.stat().st_size
    recorded = {leaf for start, length in entries(record, size) for leaf in leaves_in(start, start + length, size)}
    there = set()
    with part.open("rb") as left, original.open("rb") as right:
        for leaf in range(-(-size // LEAF_BYTES)):
            if left.read(LEAF_BYTES) == right.read(LEAF_BYTES):
                there.add(leaf)
    return Left(frozenset(recorded), frozenset(there))


def entries(record: Path, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what the record says is durable, up to its torn end if it has one; nothing without one."""
    data = record.read_bytes() if record.exists() else b""
    if data[: HEAD.size] != HEAD.pack(b"ianhave1", size):
        return
    for at in range(HEAD.size, len(data) - ENTRY.size + 1, ENTRY.size):
        offset, length, crc = ENTRY.unpack_from(data, at)
        if zlib.crc32(data[at : at + 16]) != crc:
            return
        yield offset, length


def leaves_in(start: int, stop: int, size: int) -> range:
    """Those that lie wholly within these bytes of a file of that size."""
    last = size // LEAF_BYTES + 1 if stop >= size else stop // LEAF_BYTES
    return range(-(-start // LEAF_BYTES), min(last, -(-size // LEAF_BYTES)))


def asked_again(requests: list[Sent], cid: str, leaf_cids: list[str], left: Left, size: int) -> set[int]:
    """Leaves that were there and yet asked for, as blocks or within a range."""
    asked: set[int] = set()
    for request in requests:
        if request.block and request.cid in leaf_cids:
            asked.add(leaf_cids.index(request.cid))
        elif request.cid == cid and not request.block:
            asked.update(range(request.start // LEAF_BYTES, -(-request.stop // LEAF_BYTES)))
    return asked & left.there


@dataclass(frozen=True)
class Bed:
    folder: Path
    root: str
    size_bytes: int
    cid: str
    leaf_cids: list[str]
    servers: list[FileServer]

    def sent(self) -> int:
        return sum(server.sent_bytes() for server in self.servers)

    def wait_for(self, sent_bytes: int) -> None:
        """Returns once the sources have sent so much together. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_S
        while (missing := sent_bytes - self.sent()) > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.sent()} bytes were sent in {WAIT_S} s, not {sent_bytes}")
            for server in self.servers:
                server.wait_for(server.sent_bytes() + missing // len(self.servers) + 1, timeout_s=0.1)


def laid(stack: ExitStack, tmp_path: Path, size_bytes: int, sources: int) -> Bed:
    folder = random_model(tmp_path / "model", size_bytes)
    root = describe(folder, description := tmp_path / "model.json")
    file = next(f for f in json.loads(description.read_text())["files"] if f["path"] == "weights.bin")
    servers = [stack.enter_context(FileServer(description, rate_bytes=RATE_BYTES, have=True)) for _ in range(sources)]
    total = sum(p.stat().st_size for p in folder.iterdir())
    return Bed(folder, root, total, file["cid"], file["leaves"], servers)


def crash(
    tmp_path: Path, size_bytes: int, kills: int, sources: int, allowed_bytes: int, figure: Callable[[str], None]
) -> None:
    """Kills at so many moments, spread at random over the bytes that the sources have to send."""
    with ExitStack() as stack:
        bed = laid(stack, tmp_path, size_bytes, sources)
        (cache := tmp_path / "cache").mkdir(mode=0o700)
        node = NodeProcess(cache, *(part for server in bed.servers for part in ("--peer", server.url)))
        stack.callback(node.stop)
        moments = sorted(random.Random(size_bytes).uniform(0.05, 0.95) for _ in range(kills))
        left = Left(frozenset(), frozenset())
        rehashed = 0
        before = [0] * sources
        for moment in moments:
            node.start()
            Pin(node, bed.root)
            bed.wait_for(int(moment * bed.size_bytes))
            node.kill()
            refetched = _asked_since(bed, before, left)
            assert not refetched, f"leaves {sorted(refetched)} were there and yet asked for"
            before = [len(server.requests()) for server in bed.servers]
            left = what_is_left(cache, bed.cid, bed.folder / "weights.bin")
            assert left.recorded <= left.there, "the record claims bytes that are not there"
            rehashed += len(left.there - left.recorded)
        node.start()
        done = pin(node, bed.root)
        assert done.receipt is not None, f"{done.error}\n{node.tail()}"
        refetched = _asked_since(bed, before, left)
        assert not refetched, f"leaves {sorted(refetched)} were there and yet asked for"
        assert same_files(Path(done.receipt["path"]), bed.folder)
        sent = bed.sent()
        figure(
            f"{kills} kills in {bed.size_bytes / 1e6:.0f} MB of {sources} sources: sent {sent / bed.size_bytes:.4f} x"
            f" the model, {(sent - bed.size_bytes) / kills / 1e6:.1f} MB lost at each; {rehashed} leaves re-hashed"
        )
        assert sent <= bed.size_bytes + allowed_bytes


def _asked_since(bed: Bed, before: list[int], left: Left) -> set[int]:
    size = (bed.folder / "weights.bin").stat().st_size
    return {
        leaf
        for server, count in zip(bed.servers, before, strict=True)
        for leaf in asked_again(server.requests()[count:], bed.cid, bed.leaf_cids, left, size)
    }


LOST_AT_A_KILL = (1 << 30) // 10 // 10  # 10 % of 1 GiB in ten kills


@pytest.mark.timeout(240)
def test_three_kills_in_64_mib(tmp_path: Path, figure: Callable[[str], None]) -> None:
    crash(tmp_path, 64 * MIB, 3, 2, 3 * LOST_AT_A_KILL, figure)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_ten_kills_in_1_gib(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """At most 1.10 times the model is sent."""
    crash(tmp_path, 1 << 30, 10, 3, (1 << 30) // 10, figure)
