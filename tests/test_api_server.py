"""The daemon as a process: what it refuses to start with, what it leaves, how it stops (P13, P14, F29, L8)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from ipfs_accelerate_node.api.daemon_file import read_daemon_file, running_daemon, write_daemon_file
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.api.server import check_bind, serve
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.errors import AlreadyRunning, Conflict, InvalidConfig, StorageError, exit_code

PROGRAM = """
import asyncio, logging, sys
from pathlib import Path
from ipfs_accelerate_node.api.server import serve
from ipfs_accelerate_node.config import Config
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
config = Config(cache=Path(sys.argv[1]), port=0, kubo="off")
asyncio.run(serve(config, on_ready=lambda url: print(url, flush=True), drain_s=float(sys.argv[2])))
print("clean", flush=True)
"""
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
BOUNDARY = b"----part"


class Daemon:
    def __init__(self, cache: Path, drain_s: float) -> None:
        self.cache = cache
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(cache), str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.stdout: IO[str] = self.process.stdout
        self.url = self.stdout.readline().strip()
        assert self.url, self.process.communicate()[1]
        note = json.loads((cache / "daemon.json").read_text())
        self.key: str = note["key"]
        self.port = int(self.url.rpartition(":")[2])

    def status(self, path: str, key: str | None = None) -> tuple[int, dict[str, object]]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            with OPENER.open(urllib.request.Request(self.url + path, headers=headers), timeout=10) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)

    def begin_upload(self) -> socket.socket:
        """An upload that has sent all but its last part; the daemon has taken the first."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        sock.sendall(
            b"POST /api/add HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
            b"Content-Type: multipart/form-data; boundary=%s\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
            b"Expect: 100-continue\r\n\r\n" % (self.port, self.key.encode(), BOUNDARY)
        )
        assert sock.recv(1024).startswith(b"HTTP/1.1 100")
        sock.sendall(chunk(part("a.txt", b"first")))
        return sock

    def wait(self) -> tuple[int, str]:
        stderr = self.process.communicate(timeout=15)[1]
        return self.process.returncode, stderr


def part(name: str, content: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + content + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def finish(sock: socket.socket) -> bytes:
    sock.sendall(chunk(part("b.txt", b"second") + b"--" + BOUNDARY + b"--\r\n") + b"0\r\n\r\n")
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    return answer


@contextmanager
def daemon(cache: Path, drain_s: float = 10.0) -> Iterator[Daemon]:
    made = Daemon(cache, drain_s)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()


def test_start_and_stop_leave_what_they_should(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache") as here:
        note = tmp_path / "cache" / "daemon.json"
        found = json.loads(note.read_text())
        assert found == {"url": here.url, "pid": here.process.pid, "key": here.key}
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        assert here.status("/healthz") == (200, {"live": True})
        status, ready = here.status("/readyz")
        assert (status, ready["ready"], ready["state"], ready["kubo"]) == (200, True, "ready", "off")
        assert ready["degraded"]  # no Kubo: ready, and says what that means
        here.process.send_signal(signal.SIGTERM)
        code, stderr = here.wait()
        assert code == 0, stderr
        assert "Traceback" not in stderr
        assert here.key not in stderr
        assert not note.exists()


def test_the_key_of_the_last_run_is_dead_in_the_next(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache") as first:
        old = first.key
        first.process.send_signal(signal.SIGINT)
        assert first.wait()[0] == 0
    with daemon(tmp_path / "cache") as second:
        assert second.key != old
        for key, wanted in ((old, 401), (second.key, 200)):
            assert second.status("/api/store", key)[0] == wanted


def test_the_first_signal_lets_work_finish_and_refuses_new(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache") as here, closing(here.begin_upload()) as upload:
        here.process.send_signal(signal.SIGTERM)
        while (status := here.status("/readyz")[0]) == 200:
            pass
        assert status == 503
        assert here.status("/healthz")[0] == 200
        refused, body = here.status("/v1/models")
        assert (refused, body["code"]) == (503, "shutting_down")
        answer = finish(upload)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        code, stderr = here.wait()
        assert code == 0, stderr


def test_the_second_signal_cuts_work_off(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache", drain_s=1000) as here, closing(here.begin_upload()):
        here.process.send_signal(signal.SIGTERM)
        while here.status("/readyz")[0] == 200:
            pass
        here.process.send_signal(signal.SIGTERM)
        code, stderr = here.wait()
        assert code == 0, stderr
        assert "Traceback" not in stderr
        assert not list((tmp_path / "cache" / "uploads").iterdir())
        assert not (tmp_path / "cache" / "daemon.json").exists()


def test_work_that_does_not_finish_in_time_is_cut_off(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache", drain_s=0.2) as here, closing(here.begin_upload()):
        here.process.send_signal(signal.SIGTERM)
        code, stderr = here.wait()
        assert code == 0, stderr
        assert "serve.cut requests=1" in stderr


def test_an_upload_of_a_killed_daemon_is_cleared_by_the_next(tmp_path: Path) -> None:
    with daemon(tmp_path / "cache") as here, closing(here.begin_upload()):
        here.process.kill()
        here.wait()
    with daemon(tmp_path / "cache") as here:
        assert not (tmp_path / "cache" / "uploads").exists()
        assert here.status("/readyz")[0] == 200


async def test_a_bind_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(InvalidConfig) as caught:
            await serve(Config(cache=tmp_path / "cache", host=host, port=0, kubo="off"))
        assert exit_code(caught.value) == 2
        assert caught.value.code == "key_needed"
    keys = KeyRing(tmp_path / "keys.json")
    keys.session_key()
    with pytest.raises(InvalidConfig):
        check_bind(Config(cache=tmp_path, host="0.0.0.0"), keys)
    keys.create(["infer"])
    check_bind(Config(cache=tmp_path, host="0.0.0.0"), keys)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """L8."""
    cache = tmp_path / "cache"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict) as taken:
            await serve(Config(cache=cache, port=port, kubo="off"))
        assert (taken.value.code, exit_code(taken.value)) == ("port_in_use", 1)
        cache.mkdir(exist_ok=True)
        (cache / "daemon.json").write_text(json.dumps({"url": "http://x", "pid": os.getppid(), "key": "k"}))
        with pytest.raises(AlreadyRunning, match=f"already running pid {os.getppid()}"):
            await serve(Config(cache=cache, port=port, kubo="off"))


async def test_addresses_that_are_none(tmp_path: Path) -> None:
    KeyRing(tmp_path / "keys.json").create(["infer"])
    for host, port in (("no-such-host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1)):
        with pytest.raises(InvalidConfig):
            await serve(Config(cache=tmp_path, host=host, port=port, kubo="off"))


async def test_a_failure_under_way_is_told_as_itself(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").mkdir()
    with pytest.raises(StorageError, match=r"daemon\.json"):
        await serve(Config(cache=tmp_path, port=0, kubo="off"))


def test_the_note_of_a_daemon_that_is_gone(tmp_path: Path) -> None:
    assert running_daemon(tmp_path) is None
    for text in ("", "{}", "[1]", '{"url": 1}', '{"url": "u", "pid": -1, "key": "k"}', "\udcff"):
        (tmp_path / "daemon.json").write_text(text, errors="surrogateescape")
        assert running_daemon(tmp_path) is None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "daemon.json").write_text(json.dumps({"url": "u", "pid": gone.pid, "key": "k"}))
    assert running_daemon(tmp_path) is None
    write_daemon_file(tmp_path, "http://127.0.0.1:1", "secret-key")
    found = read_daemon_file(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    assert "secret-key" not in repr(found)
