"""An HTTP server of one model's files in a process of its own, at a capped rate, honest or not.

It answers as a trustless gateway with ranges does (`/ipfs/{cid}`, `?format=raw`), as another node does
(`/api/have/{root}`) and, for huggingface_hub, as a Hub does (`/{repo}/resolve/{revision}/{path}`). What it wrote to
whom is counted to the byte. `python -m tests.support.capped DESCRIPTION BEHAVIOUR` is the process.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

CHECKOUT = Path(__file__).parents[2]
CONTROL = "/.server"
SLICE_BYTES = 1 << 20
CAPPED_SLICE_BYTES = 32 << 10
LEAF_BYTES = 1 << 20
COMMIT = "0123456789abcdef" * 2 + "01234567"
HOTEL = b"<html><body>Sign in to the hotel network</body></html>"


@dataclass(frozen=True)
class Behaviour:
    """rate_bytes: a second, over all connections. corrupt_every: one byte of every so-manieth leaf is wrong, in ranges
    and in blocks. stall_after: so many bytes in all, then every connection falls silent. truncate_after: every answer
    ends there, and its connection. html: a page instead of every range and block. short: every range misses its last
    byte, and says so. ranges: False answers 404 to what is not asked for as a block. have: says that it has all.
    """

    rate_bytes: int | None = None
    corrupt_every: int = 0
    stall_after: int | None = None
    truncate_after: int | None = None
    html: bool = False
    short: bool = False
    ranges: bool = True
    have: bool = False


@dataclass(frozen=True)
class Sent:
    """One request. cid: as asked for. start, stop: of the file, or of the block. sent: bytes that were written."""

    cid: str
    block: bool
    start: int
    stop: int
    sent: int


def describe(directory: Path, into: Path) -> str:
    """Writes what a server of that directory must know to ``into``; returns the root."""
    from ipfs_accelerate_node.store.ingest import hash_directory

    built = hash_directory(directory)
    files = [
        {"path": f.path, "cid": str(f.cid), "size": f.size, "leaves": [str(leaf.cid) for leaf in f.leaves]}
        for f in built.plan.files
    ]
    nodes = {str(cid): base64.b64encode(block).decode() for cid, block in built.nodes}
    into.write_text(
        json.dumps({"root": str(built.plan.root), "folder": str(directory), "files": files, "nodes": nodes})
    )
    return str(built.plan.root)


class FileServer:
    """The process, up when entered. Give it `Behaviour`'s fields."""

    def __init__(self, description: Path, **behaviour: Any) -> None:
        self._description = description
        self.behaviour = Behaviour(**behaviour)
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        command = [
            sys.executable,
            "-m",
            "tests.support.capped",
            str(self._description),
            json.dumps(asdict(self.behaviour)),
        ]
        self._process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(30)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def behave(self, **changes: Any) -> None:
        """Changes what it does from the next request on."""
        self.behaviour = replace(self.behaviour, **changes)
        self._control("behave", json.dumps(asdict(self.behaviour)).encode())

    def sent_bytes(self) -> int:
        """Of content, to everybody, until now."""
        return int(self._control("total"))

    def requests(self) -> list[Sent]:
        return [Sent(**entry) for entry in self._control("requests")]

    def wait_for(self, sent_bytes: int, timeout_s: float = 60.0) -> int:
        """Blocks until so much content was sent in all. Returns how much it was then."""
        return int(self._control(f"wait?bytes={sent_bytes}&timeout_s={timeout_s}", timeout_s=timeout_s + 10))

    def _control(self, what: str, body: bytes | None = None, timeout_s: float = 30.0) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}{CONTROL}/{what}", data=body, timeout=timeout_s) as reply:
            return json.load(reply)


# -- the process


class Meter:
    """Hands out the right to send, so many bytes a second; what was missed in the last moment may be made up for."""

    BURST_S = 0.05

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._never = threading.Event()

    def take(self, count: int, rate_bytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now - self.BURST_S, self._free_at)
            self._free_at = start + count / rate_bytes
        if start > now:
            self._never.wait(start - now)


class Shelf(ThreadingHTTPServer):
    """State of the server: what it has, what it does, what it sent."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, description: dict[str, Any], behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.behaviour = behaviour
        self.root = description["root"]
        self.files = {f["cid"]: f for f in description["files"]}
        self.by_path = {f["path"]: f for f in description["files"]}
        self.nodes = {cid: base64.b64decode(block) for cid, block in description["nodes"].items()}
        self.leaves = {
            leaf: (f["cid"], at * LEAF_BYTES) for f in description["files"] for at, leaf in enumerate(f["leaves"])
        }
        self.descriptors = {
            f["cid"]: os.open(Path(description["folder"], f["path"]), os.O_RDONLY) for f in description["files"]
        }
        self.meter = Meter()
        self.told = threading.Condition()
        self.total = 0
        self.log: list[dict[str, Any]] = []
        self.end = threading.Event()

    def count(self, entry: dict[str, Any], sent: int) -> None:
        with self.told:
            self.total += sent
            entry["sent"] += sent
            self.told.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is its own affair."""


class Answer(BaseHTTPRequestHandler):
    server: Shelf
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the log is for who asks."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.behaviour = Behaviour(**json.loads(body))
        self._json(None)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if path.startswith(CONTROL):
            self._tell(path.removeprefix(f"{CONTROL}/"), query)
        elif path.startswith("/ipfs/"):
            self._content(path.removeprefix("/ipfs/"), query)
        elif path == f"/api/have/{self.server.root}" and self.server.behaviour.have:
            self._json(
                {"root": self.server.root, "complete": True, "files": [_all_of(f) for f in self.server.files.values()]}
            )
        elif (match := re.fullmatch(r"/.+?/resolve/[^/]+/(.+)", path)) and match[1] in self.server.by_path:
            cid = self.server.by_path[match[1]]["cid"]
            self._file(cid, {"ETag": f'"{cid}"', "X-Repo-Commit": COMMIT})
        else:
            self._plain(404)

    # what a test asks

    def _tell(self, what: str, query: dict[str, list[str]]) -> None:
        with self.server.told:
            if what == "wait":
                wanted, timeout_s = int(query["bytes"][0]), float(query["timeout_s"][0])
                self.server.told.wait_for(lambda: self.server.total >= wanted, timeout_s)
            reply = list(self.server.log) if what == "requests" else self.server.total
        self._json(reply)

    # what a client asks

    def _content(self, cid: str, query: dict[str, list[str]]) -> None:
        behaviour = self.server.behaviour
        if behaviour.html:
            self._plain(200, HOTEL, "text/html")
        elif query.get("format") == ["raw"]:
            self._block(cid)
        elif query or cid not in self.server.files or not behaviour.ranges:
            self._plain(404)
        else:
            self._file(cid, {"ETag": f'"{cid}"'})

    def _block(self, cid: str) -> None:
        kind = {"Content-Type": "application/vnd.ipld.raw"}
        if (node := self.server.nodes.get(cid)) is not None:
            entry = self._entry(cid, 0, len(node), block=True)
            self._head(200, len(node), kind)
            self._write(entry, node)
        elif cid in self.server.leaves:
            file, start = self.server.leaves[cid]
            stop = min(start + LEAF_BYTES, self.server.files[file]["size"])
            entry = self._entry(cid, 0, stop - start, block=True)
            self._head(200, stop - start, kind)
            self._send(entry, file, start, stop)
        else:
            self._plain(404)

    def _file(self, cid: str, headers: dict[str, str]) -> None:
        size = self.server.files[cid]["size"]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop, status = 0, size, 200
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if asked is not None:
            start, stop, status = int(asked[1]), min(int(asked[2] or size), size - 1) + 1, 206
            if start >= size:
                self._plain(416)
                return
            if self.server.behaviour.short:
                stop -= 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        entry = self._entry(cid, start, stop, block=False)
        self._head(status, stop - start, headers)
        self._send(entry, cid, start, stop)

    def _entry(self, cid: str, start: int, stop: int, *, block: bool) -> dict[str, Any]:
        entry = {"cid": cid, "block": block, "start": start, "stop": stop, "sent": 0}
        with self.server.told:
            self.server.log.append(entry)
        return entry

    def _send(self, entry: dict[str, Any], file: str, start: int, stop: int) -> None:
        """The file's bytes from start to stop, as the behaviour makes them."""
        if self.command == "HEAD":
            return
        at, fd = start, self.server.descriptors[file]
        while at < stop:
            behaviour = self.server.behaviour
            count = min(stop - at, SLICE_BYTES if behaviour.rate_bytes is None else CAPPED_SLICE_BYTES)
            count = self._allowed(behaviour, entry, count)
            wrong = _wrong_byte(at, count, behaviour.corrupt_every)
            if count == 0:
                self.close_connection = True
                return
            if wrong is None:
                sent = os.sendfile(self.connection.fileno(), fd, at, count)
            else:
                data = bytearray(os.pread(fd, count, at))
                data[wrong] ^= 1
                self.connection.sendall(data)
                sent = count
            self.server.count(entry, sent)
            at += sent

    def _write(self, entry: dict[str, Any], data: bytes) -> None:
        if self.command != "HEAD" and (count := self._allowed(self.server.behaviour, entry, len(data))):
            self.connection.sendall(data[:count])
            self.server.count(entry, count)
            self.close_connection = count < len(data)

    def _allowed(self, behaviour: Behaviour, entry: dict[str, Any], count: int) -> int:
        """How much of that may go out now; waits for the rate, and for ever once it has stalled. 0: hang up."""
        if behaviour.stall_after is not None and self.server.total >= behaviour.stall_after:
            self.server.end.wait()
        if behaviour.truncate_after is not None:
            count = max(0, min(count, behaviour.truncate_after - entry["sent"]))
        if behaviour.rate_bytes is not None and count:
            self.server.meter.take(count, behaviour.rate_bytes)
        return count

    def _head(self, status: int, size: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _plain(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self._head(status, len(body), {"Content-Type": kind})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, body: object) -> None:
        self._plain(200, json.dumps(body).encode(), "application/json")


def _wrong_byte(at: int, count: int, every: int) -> int | None:
    """Where in this run a byte is to be wrong: in the middle of every ``every``-th leaf. None: nowhere."""
    if not every:
        return None
    first = at // LEAF_BYTES
    for leaf in range(first, (at + count) // LEAF_BYTES + 1):
        place = leaf * LEAF_BYTES + 1000
        if leaf % every == 0 and at <= place < at + count:
            return place - at
    return None


def _all_of(file: dict[str, Any]) -> dict[str, Any]:
    leaves = len(file["leaves"])
    bitmap = ((1 << leaves) - 1).to_bytes((leaves + 7) // 8, "little")
    return {"path": file["path"], "cid": file["cid"], "leaves": leaves, "bitmap": base64.b64encode(bitmap).decode()}


def main(description: str, behaviour: str) -> None:
    shelf = Shelf(json.loads(Path(description).read_text()), Behaviour(**json.loads(behaviour)))
    print(shelf.server_address[1], flush=True)
    with suppress(KeyboardInterrupt):
        shelf.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
