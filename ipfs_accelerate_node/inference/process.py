"""A worker process as the daemon sees it: started with an environment of its own, given jobs, ended."""

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
from ipfs_accelerate_node.inference import frames, wire
from ipfs_accelerate_node.inference.blame import Blame
from ipfs_accelerate_node.inference.jobs import Answer
from ipfs_accelerate_node.inference.memory import resident_bytes

log = logging.getLogger(__name__)

_PACKAGE_PARENT = str(Path(ipfs_accelerate_node.__file__).resolve().parent.parent)
_END_S = 2.0  # how long a worker that was hung up on may take to end
_LAST_WORDS_BYTES = 2000
MEMORY_AGE_S = 1.0

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
    """The worker ended, hung or spoke nonsense; str() says which. It is dead when this is raised. silent: it hung."""

    silent = False


class _Ended(Exception):
    pass


class _Channel(asyncio.Protocol):
    """The worker's frames, as they come. receive: called with each reply. ended: called once, when the worker hung up
    or sent nonsense, which the argument then describes."""

    def __init__(self, receive: Callable[[wire.Reply, memoryview], None], ended: Callable[[str], None]) -> None:
        self._receive = receive
        self._ended = ended
        self._replies = frames.Replies()

    def data_received(self, data: bytes) -> None:
        try:
            for reply, payload in self._replies.feed(data):
                self._receive(reply, payload)
        except frames.WireError as exc:
            self._ended(f"sent what is no answer: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended("")


class WorkerProcess:
    """One child process. said: descriptor of what it writes to stderr. heard: when it gave a sign of life, by the
    loop's clock. blame: the jobs that it is at."""

    def __init__(self, process: asyncio.subprocess.Process, said: int, blame: Blame) -> None:
        self._process = process
        self._said = said
        self._blame = blame
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._asked: asyncio.Future[Answer] | None = None
        self._progress: Callable[[wire.Phase], None] = lambda phase: None
        self._receive: Callable[[wire.Reply, memoryview], None] | None = None
        self._when_ended: Callable[[], None] = lambda: None
        self._ended: str | None = None  # why nothing comes from it any more; "" is its end
        self.heard = self._loop.time()
        self.pid = process.pid
        self._memory, self._memory_until = 0, 0.0

    @classmethod
    async def start(cls, *, threads: int, kind: str = "torch") -> WorkerProcess:
        """A process of that kind (``torch`` or ``openvino``) that begins to import at once; this returns before it has.
        Raises OSError: no process to be had."""
        ours, theirs = socket.socketpair()
        said = os.memfd_create("worker-stderr")
        blame, page = Blame.create()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-s", "-m", "ipfs_accelerate_node.inference.worker",
                str(theirs.fileno()), str(os.getpid()), str(threads), kind, str(page),
                stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said, env=worker_environment(threads, kind),
                cwd="/", pass_fds=(theirs.fileno(), page), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            os.close(said)
            blame.close()
            raise
        finally:
            theirs.close()
            os.close(page)
        worker = cls(process, said, blame)
        channel = _Channel(worker._received, worker._hung_up)
        try:
            worker._transport, _ = await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
        except BaseException:
            ours.close()
            await worker.stop()
            raise
        return worker

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and self._ended is None

    @property
    def memory_bytes(self) -> int:
        """Resident size, read at most once a second: every answer says it."""
        now = self._loop.time()
        if now >= self._memory_until:
            self._memory, self._memory_until = resident_bytes(self.pid), now + MEMORY_AGE_S
        return self._memory

    def serve(self, receive: Callable[[wire.Reply, memoryview], None], ended: Callable[[], None]) -> None:
        """From now on answers to jobs go to ``receive``, which may raise WireError for one that is none; ``ended`` is
        called when there will be no more."""
        self._receive, self._when_ended = receive, ended
        if self._ended is not None:
            ended()

    def send(self, request: wire.Request) -> None:
        """Does not block. What is sent to one that has ended is lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.frame(request))

    def cancel(self, job: int) -> None:
        """Tell the worker that nobody waits for this job; does not block."""
        self.send(wire.Cancel(job))

    def struck(self) -> frozenset[int]:
        """The jobs that it was at when it ended."""
        return self._blame.jobs()

    async def ask(
        self,
        request: wire.Request,
        *,
        silence_s: float,
        progress: Callable[[wire.Phase], None] = lambda phase: None,
    ) -> Answer:
        """The answer to a request that has no job's number, and its payload; one at a time. progress: called with each
        sign of life.

        Raises WorkerGone: it ended, or gave no sign of life for ``silence_s``; NodeError: what it answered with.
        Cancelled in the middle, the worker is of no further use: end it.
        """
        if self._ended is not None:
            raise await self.verdict()
        self._asked, self._progress, self.heard = self._loop.create_future(), progress, self._loop.time()
        self.send(request)
        try:
            while (left_s := self.heard + silence_s - self._loop.time()) > 0:
                await asyncio.wait({self._asked}, timeout=left_s)
                if self._asked.done():
                    reply, payload = self._asked.result()
                    if isinstance(reply, wire.Failure):
                        raise reply.error()
                    return reply, payload
            raise await self.hung(silence_s)
        except _Ended:
            raise await self.verdict() from None
        finally:
            self._asked = None

    def _received(self, reply: wire.Reply, payload: memoryview) -> None:
        self.heard = self._loop.time()
        unnumbered = getattr(reply, "job", None) is None and not isinstance(reply, wire.Answers | wire.Progress)
        if isinstance(reply, wire.Progress) and self._asked is not None:
            self._progress(reply.phase)
        elif unnumbered and self._asked is not None and not self._asked.done():
            self._asked.set_result((reply, payload))
        elif unnumbered or self._receive is None:
            raise frames.WireError("an answer that was not asked for")
        else:
            self._receive(reply, payload)

    def _hung_up(self, why: str) -> None:
        if self._ended is None:
            self._ended = why
            if self._asked is not None and not self._asked.done():
                self._asked.set_exception(_Ended())
            if self._transport is not None:
                self._transport.close()
            self._when_ended()

    async def hung(self, silence_s: float) -> WorkerGone:
        """It gave no sign of life: ended, and why."""
        await self.kill()
        gone = WorkerGone(f"worker {self.pid} gave no sign of life for {silence_s:g} s and was ended")
        gone.silent = True
        return gone

    async def verdict(self) -> WorkerGone:
        """Why nothing comes from it any more; it is dead then."""
        if self._ended:
            await self.kill()
            return WorkerGone(f"worker {self.pid} {self._ended}")
        return WorkerGone(await self._how())

    async def stop(self) -> None:
        """Hang up, wait for the end, and give back what belongs to it. Idempotent."""
        self._close()
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
                self._blame.close()

    async def kill(self) -> None:
        """End it now."""
        self._signal()
        self._close()
        await self._process.wait()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _signal(self) -> None:
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("worker.gone pid=%d", self.pid)

    async def _how(self) -> str:
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
