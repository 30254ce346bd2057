"""What the command line meets: a small real HTTP server that speaks the native routes, and the command as a process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

ROOT = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
KEY = "ian_admin_key_of_the_test"
COMMAND = (sys.executable, "-m", "ipfs_accelerate_node")
TIMEOUT_S = 15.0

RECEIPT: dict[str, Any] = {
    "root": ROOT, "name": "minilm", "path": f"/cache/models/{ROOT}", "bytes_total": 90_900_000,
    "bytes_fetched": 90_000_000, "bytes_copied": 900_000, "seconds": 2.25, "seeded": False,
    "seed_note": "served over HTTP only; Kubo is off", "announced": False, "reference": ROOT,
    "sources": [{"source": "http://peer:8090", "kind": "peer", "bytes": 90_000_000, "requests": 12, "rejected": 1}],
}  # fmt: skip
MODEL: dict[str, Any] = {
    "root": ROOT, "path": f"/cache/models/{ROOT}", "size_bytes": 90_900_000, "file_count": 2, "names": ["minilm"],
    "pinned": True, "public": True, "last_used": 3,
    "provenance": {"kind": "cid", "reference": ROOT, "at": "2026-01-01T00:00:00Z", "sources": RECEIPT["sources"]},
}  # fmt: skip
LOADED: dict[str, Any] = {
    "id": "minilm", "root": ROOT, "device": "cpu", "engine": "torch", "precision": "f32", "implementation": "REAL",
    "load_s": 1.5, "memory_bytes": 400_000_000, "state": "ready",
}  # fmt: skip


BENCH_RESULT: dict[str, Any] = {
    "record": {
        "workload": {"name": "tg32"}, "device": "cpu", "engine": "torch", "precision": "f32",
        "samples_ns": [3_000_000, 1_000_000, 2_500_000],
    },
    "figures": {
        "p50_ms": 2.5, "p95_ms": 2.95, "throughput": 1200.0, "unit": "tokens/s", "ttft_ms": 1.25, "tpot_ms": 0.5,
        "rtf": None, "phases_ms": {"first_token": 1.25},
    },
    "record_cid": "bafyrecord", "envelope_cid": "bafyenvelope",
    "signer": "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "published": True, "note": None,
}  # fmt: skip
BENCH: dict[str, Any] = {
    "results": [BENCH_RESULT],
    "left_out": [{"device": "cpu", "workload": "pp512", "code": "too_long", "reason": "the model takes 128"}],
}


PLAN: dict[str, Any] = {
    "reference": ROOT, "root": ROOT, "only": ["*.json"], "stored": False, "bytes_total": 90_900_000,
    "bytes_here": 400_000, "bytes_copyable": 500_000, "bytes_to_fetch": 90_000_000, "disk_needed_bytes": 90_500_000,
    "room_bytes": 50_000_000, "evictable_bytes": 10_000_000, "quota_bytes": 100_000_000, "fits": False,
    "hub_commit": None,
    "files": [
        {"path": "config.json", "cid": ROOT, "size": 400_000, "here": True, "bytes_here": 400_000, "bytes_copyable": 0},
        {"path": "w", "cid": ROOT, "size": 90_500_000, "here": False, "bytes_here": 0, "bytes_copyable": 500_000},
    ],
    "sources": [
        {"source": "http://peer:8090", "kind": "peer", "ranges": True, "complete": True, "bytes": 90_900_000,
         "code": None, "reason": None, "doubt": None},
        {"source": "http://gw", "kind": "gateway", "ranges": False, "complete": None, "bytes": None, "code": None,
         "reason": None, "doubt": None},
        {"source": "kubo", "kind": "kubo", "ranges": False, "complete": None, "bytes": None, "code": "stalled",
         "reason": "kubo did not answer within 10 s", "doubt": None},
    ],
}  # fmt: skip


def job(state: str, done: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": "0123456789abcdef", "ref": ROOT, "name": None, "state": state, "root": ROOT, "bytes_total": 1000,
        "bytes_done": done, "source": "kubo", "receipt": RECEIPT if state == "pinned" else None, "error": None, **more,
    }  # fmt: skip


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    body: Any
    key: str | None


@dataclass
class Daemon:
    """Answers from ``answers`` ((method, path) -> (status, JSON)), else with the usual reply of that route.

    states: what the events of a pin tell, in order; a None holds the stream open until the client goes.
    watched: set when the events are being read.
    """

    cache: Path
    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    states: Sequence[dict[str, Any] | None] = field(default_factory=lambda: [job("fetching", 500), job("pinned", 1000)])
    seen: list[Seen] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    form: dict[str, str] = field(default_factory=dict)
    loading: int = 0
    url: str = ""
    watched: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/healthz", _live)
        app.router.add_post("/api/add", self._add)
        app.router.add_get("/api/pins/{ref:.+}/events", self._events)
        app.router.add_route("*", "/{path:.*}", self._usual)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.note_in(self.cache)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def note_in(self, cache: Path, **other: object) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "daemon.json").write_text(json.dumps({"url": self.url, "pid": os.getpid(), "key": KEY, **other}))

    def asked(self, method: str, path: str) -> Any:
        """The body of the only such request."""
        (only,) = [seen for seen in self.seen if (seen.method, seen.path) == (method, path)]
        return only.body

    def _note(self, request: web.Request, body: Any) -> None:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.seen.append(Seen(request.method, request.path_qs, body, key))

    async def _usual(self, request: web.Request) -> web.Response:
        has_json = request.can_read_body and request.content_type == "application/json"
        self._note(request, await request.json() if has_json else None)
        told = self.answers.get((request.method, request.path_qs)) or _usual_answer(self, request)
        status, body = told
        kind = "application/problem+json" if status >= 400 else "application/json"
        headers = {"Retry-After": "0"} if status == 503 else {}
        if request.path == "/v1/embeddings" and status == 200:
            headers = {"X-Implementation": "REAL", "X-Device": "cpu", "X-Model-Root": ROOT}
        if status == 200 and "text/event-stream" in request.headers.get("Accept", ""):
            return _as_events(body)
        if isinstance(body, str):
            return web.Response(text=body, status=status, content_type="text/html")
        return web.json_response(body, status=status, content_type=kind, headers=headers)

    async def _add(self, request: web.Request) -> web.Response:
        if request.content_type != "multipart/form-data" or ("POST", "/api/add") in self.answers:
            return await self._usual(request)
        self._note(request, None)
        async for part in await request.multipart():
            assert not isinstance(part, web.Request)
            content = await part.read()  # type: ignore[union-attr]
            if part.name == "file":  # type: ignore[union-attr]
                self.uploaded[part.filename or ""] = bytes(content)  # type: ignore[union-attr]
            else:
                self.form[part.name or ""] = content.decode()  # type: ignore[union-attr]
        return web.json_response(RECEIPT)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self._note(request, None)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        await reply.write(b": \n\n")
        for state in self.states:
            if state is None:
                self.watched.set()
                await asyncio.Event().wait()
                continue
            name = {"pinned": "done", "failed": "failed"}.get(state["state"], "progress")
            await reply.write(f"event: {name}\ndata: {json.dumps(state)}\n\n".encode())
        return reply


async def _live(_: web.Request) -> web.Response:
    return web.json_response({"live": True})


def _usual_answer(daemon: Daemon, request: web.Request) -> tuple[int, Any]:
    match request.method, request.path.split("/")[1:]:
        case "POST", ["api", "add"]:
            return 200, RECEIPT
        case "POST", ["api", "pins"]:
            return 202, job("fetching")
        case "GET", ["api", "plan"]:
            return 200, PLAN
        case "DELETE", ["api", "pins", _]:
            return 200, {**MODEL, "pinned": False}
        case "GET", ["api", "store"]:
            return 200, {"models": [MODEL], "used_bytes": 90_900_000, "quota_bytes": 200_000_000}
        case "GET", ["api", "store", *_]:
            file = {"path": "config.json", "cid": "bafkqaaa", "size": 2, "sha256": "00" * 32, "git_sha1": "11" * 20}
            return 200, {"model": MODEL, "files": [file], "loaded": LOADED}
        case "DELETE", ["api", "store", _]:
            return 200, {"root": ROOT, "freed_bytes": 1_234_567}
        case "POST", ["api", "gc"]:
            return 200, {"models": [ROOT], "freed_bytes": 5}
        case "POST", ["api", "verify"]:
            return 200, {"files_checked": 3, "bytes_checked": 90, "corrupt": []}
        case "POST", ["api", "loads"]:
            return 200, LOADED
        case "DELETE", ["api", "loads", *name]:
            return 200, {"unloaded": "/".join(name)}
        case "POST", ["api", "benchmarks"]:
            return 200, BENCH_RESULT if daemon.seen[-1].body.get("record") else BENCH
        case "GET", ["api", "keys"]:
            return 200, {"keys": [{"id": "ab12", "name": None, "scopes": ["infer"], "created": "2026-01-01"}]}
        case "POST", ["api", "keys"]:
            return 201, {"id": "ab12", "name": "n", "scopes": ["infer"], "created": "2026-01-01", "key": "ian_new"}
        case "DELETE", ["api", "keys", key_id]:
            return 200, {"removed": key_id}
        case "POST", ["v1", "embeddings"]:
            return _embeddings(daemon)
        case "GET", ["readyz"]:
            return 200, {"ready": True, "state": "ready", "degraded": [], "kubo": "ready"}
        case _:
            return 404, {"detail": "there is no such path here", "code": "no_route", "exit_code": 3, "status": 404}


def _as_events(made: Any) -> web.Response:
    """A measurement as it is told to who waits for it."""
    doing = {"device": "cpu", "workload": "tg32", "phase": "measuring", "done": 3, "of": 5}
    told = [("doing", {**doing, "workload": "", "phase": "loading", "done": 0, "of": 0}), ("doing", doing)]
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in [*told, ("bench", made)])
    return web.Response(text=text, content_type="text/event-stream")


def _embeddings(daemon: Daemon) -> tuple[int, Any]:
    if daemon.loading:
        daemon.loading -= 1
        return 503, {"error": {"message": "on its way", "code": "loading", "type": "server_error", "param": None}}
    texts = daemon.seen[-1].body["input"]
    data = [{"object": "embedding", "index": i, "embedding": [0.5, -0.25, i, 1e-9, 0.1]} for i in range(len(texts))]
    return 200, {"object": "list", "data": data[::-1], "model": ROOT, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of the person who runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "HOME": str(home), "IPFS_ACCELERATE_NODE_CACHE": str(home / "cache"), **(extra or {})}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_cli(
    home: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> Done:
    process = await start_cli(home, *arguments, stdin=stdin is not None, env=env)
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def start_cli(
    home: Path, *arguments: str, stdin: bool = False, env: Mapping[str, str] | None = None, stdout: int | None = None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(home, env),
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if stdout is None else stdout, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run_on_terminal(
    home: Path, *arguments: str, columns: int = 80, typed: bytes = b"", env: Mapping[str, str] | None = None
) -> Done:
    """The command with a terminal of that width for all three streams; out has what the terminal got."""
    return await asyncio.to_thread(_on_terminal, home, arguments, columns, typed, env)


def _on_terminal(
    home: Path, arguments: Sequence[str], columns: int, typed: bytes, env: Mapping[str, str] | None
) -> Done:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environment(home, {"TERM": "xterm", **(env or {})}),
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed)
    out = b""
    try:
        while piece := os.read(ours, 65536):
            out += piece
    except OSError:  # EIO: the other end was closed, as at every end of a terminal's program
        pass
    finally:
        os.close(ours)
    return Done(process.wait(TIMEOUT_S), out.decode(errors="replace"), "")
