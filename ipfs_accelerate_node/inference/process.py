"""A worker process as the daemon sees it: started with an environment of its own, asked one thing at a time, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import ipfs_accelerate_node
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.memory import resident_bytes

log = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(ipfs_accelerate_node.__file__).resolve().parent.parent)
_END_S = 2.0  # how long a worker that was hung up on may take to end
_LAST_WORDS_BYTES = 2000

# oneDNN, inside of OpenVINO, keeps kernels of shapes seen before beside those that OpenVINO keeps. By its own limit of
# 1,024 they come to 150 MB; with none, 120 short shapes in turn take about a tenth longer in bf16.
ONEDNN_KERNELS_KEPT = 500


def worker_environment(threads: int, kind: str = "torch") -> dict[str, str]:
    """All that a worker knows of its surroundings: no token, no proxy, no home, no hub."""
    own = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(ONEDNN_KERNELS_KEPT)} if kind == "openvino" else {}
    return own | {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": _PACKAGE_PARENT,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "RAYON_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from others
        "MALLOC_ARENA_MAX": "4",
    }


class WorkerGone(Exception):
    """The worker ended, hung or spoke nonsense while it was asked; str() says which. It is dead when this is raised."""


class _Replies(asyncio.StreamReader):
    """Tells at once when the worker's end of the connection is closed: also an idle worker is seen to end."""

    ended = False
    when_ended: Callable[[], None] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended = True
        if self.when_ended is not None:
            self.when_ended()


class WorkerProcess:
    """One child process. ``ask`` must not be called twice at a time. said: descriptor of what it writes to stderr."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: _Replies, writer: asyncio.StreamWriter, said: int
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._said = said
        self.pid = process.pid

    @classmethod
    async def start(cls, *, threads: int, kind: str = "torch") -> WorkerProcess:
        """A process of that kind (``torch`` or ``openvino``) that begins to import at once; this returns before it has.
        Raises OSError: no process to be had."""
        ours, theirs = socket.socketpair()
        said = os.memfd_create("worker-stderr")
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-s", "-m", "ipfs_accelerate_node.inference.worker",
                str(theirs.fileno()), str(os.getpid()), str(threads), kind,
                stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said,
                env=worker_environment(threads, kind), cwd="/", pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            os.close(said)
            raise
        finally:
            theirs.close()
        loop, reader = asyncio.get_running_loop(), _Replies()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        return cls(process, reader, asyncio.StreamWriter(transport, protocol, reader, loop), said)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._reader.ended

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have ``call`` called (once, from the event loop) when the worker ends."""
        self._reader.when_ended = call

    @property
    def memory_bytes(self) -> int:
        return resident_bytes(self.pid)

    async def ask(
        self,
        request: wire.Request,
        *,
        silence_s: float,
        progress: Callable[[wire.Phase], None] | None = None,
    ) -> tuple[wire.Reply, bytes]:
        """The answer to one request, and its payload. progress: called with each sign of life.

        Raises WorkerGone: it ended, or gave no sign of life for ``silence_s``; NodeError: what it answered with.
        Cancelled in the middle, the worker is of no further use: end it.
        """
        try:
            async with asyncio.timeout(silence_s):
                self._writer.write(wire.frame(request))
                await self._writer.drain()
            while True:
                async with asyncio.timeout(silence_s):
                    reply, payload = await wire.read_reply(self._reader)
                if isinstance(reply, wire.Failure):
                    raise reply.error()
                if not isinstance(reply, wire.Progress):
                    return reply, payload
                if progress is not None:
                    progress(reply.phase)
        except TimeoutError:
            await self.kill()
            raise WorkerGone(f"worker {self.pid} gave no sign of life for {silence_s:g} s and was ended") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerGone(await self._verdict()) from None
        except wire.WireError as exc:
            await self.kill()
            raise WorkerGone(f"worker {self.pid} sent what is no answer: {exc}") from exc

    def cancel(self, job: int) -> None:
        """Tell the worker that nobody waits for this job; does not block."""
        if not self._writer.is_closing():
            self._writer.write(wire.frame(wire.Cancel(job)))

    async def stop(self) -> None:
        """Hang up, wait for the end, and give back what belongs to it. Idempotent."""
        self._writer.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._signal()
        finally:
            await self.kill()
            if self._said >= 0:
                os.close(self._said)
                self._said = -1

    async def kill(self) -> None:
        """End it now."""
        self._signal()
        self._writer.close()
        await self._process.wait()

    def _signal(self) -> None:
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("worker.gone pid=%d", self.pid)

    async def _verdict(self) -> str:
        """How it ended, for a person."""
        try:
            async with asyncio.timeout(_END_S):
                code = await self._process.wait()
        except TimeoutError:
            await self.kill()
            return f"worker {self.pid} closed its connection"
        log.warning("worker.ended pid=%d code=%d said=%r", self.pid, code, self._last_words())
        if code >= 0:
            return f"worker {self.pid} ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"worker {self.pid} was ended by {name}{hint}"

    def _last_words(self) -> str:
        size = os.fstat(self._said).st_size
        return os.pread(self._said, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode("utf-8", "replace")
