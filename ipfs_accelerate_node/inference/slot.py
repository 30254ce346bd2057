"""One loaded model: its queue, its state, and the task that owns its worker process.

Only ``Slot.run`` talks to the worker. Callers put a job into the queue and wait for its future; a caller who goes away
takes the job along, or has the worker drop it between two forward passes. The worker's end costs the job it was at; the
ones still queued wait for its successor, unless that keeps ending too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from ipfs_accelerate_node.errors import NodeError, NotFound, Overloaded, Unavailable
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.inputs import Inputs
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel, ModelSpec, State
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess

log = logging.getLogger(__name__)

MAX_QUEUED = 512
MAX_QUEUED_SIZE = 64 << 20  # characters or token ids, of all queued jobs together
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0

_jobs = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. silence: without a sign of life from the worker. drain: for queued jobs when the model is unloaded.
    steady: a worker that lived so long was not part of a series of crashes."""

    load_timeout_s: float
    silence_s: float
    drain_timeout_s: float
    steady_s: float


@dataclass(slots=True, eq=False)
class Job:
    inputs: Inputs
    dimensions: int | None
    normalize: bool | None
    truncate: bool
    done: asyncio.Future[Embeddings]
    number: int = field(default_factory=lambda: next(_jobs))
    since: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Characters, or token ids."""
        return sum(map(len, self.inputs))

    def request(self) -> wire.Embed:
        texts = [item for item in self.inputs if isinstance(item, str)]
        ids = [item for item in self.inputs if isinstance(item, list)]
        return wire.Embed(self.number, texts or None, ids or None, self.dimensions, self.normalize, self.truncate)


class Slot:
    """hire: a worker process, already importing. precision: of the weights and the computation."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        names: tuple[str, ...],
        precision: str,
        hire: Callable[[], Awaitable[WorkerProcess]],
        limits: Limits,
    ) -> None:
        assert spec.path is not None
        self.spec = spec
        self._directory = str(spec.path.absolute())
        self.names = names
        self.precision = precision
        self.state: State = "loading"
        self._hire = hire
        self._limits = limits
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._worker: WorkerProcess | None = None
        self._loaded: wire.Loaded | None = None
        self._load_s = 0.0
        self._error: NodeError | None = None  # why there is no worker, while there is none
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._closing = False

    def snapshot(self) -> LoadedModel:
        loaded, worker = self._loaded, self._worker
        return LoadedModel(
            id=self.names[0] if self.names else self.spec.root,
            root=self.spec.root,
            names=self.names,
            device=loaded.device if loaded else "",
            engine="torch",
            precision=self.precision,
            implementation="REAL",
            source=self.spec.source,
            task=self.spec.task,
            width=loaded.width if loaded else 0,
            max_tokens=loaded.max_tokens if loaded else 0,
            state=self.state,
            load_s=self._load_s,
            pid=worker.pid if worker else None,
            versions=dict(loaded.versions) if loaded else {},
            memory_bytes=worker.memory_bytes if worker else 0,
            vocab_size=loaded.vocab_size if loaded else 0,
            architecture=loaded.architecture if loaded else "",
            pooling=loaded.pooling if loaded else (),
            normalize=loaded.normalize if loaded else True,
            notes=loaded.notes if loaded else (),
        )

    async def ready(self) -> LoadedModel:
        """Waits until the model answers. Raises the error that keeps it from it; NotFound once it is unloaded."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state not in ("loading", "warming") or self._error is not None)
        if self._error is not None:
            raise self._error
        if self.state != "ready":
            raise self._unloaded()
        return self.snapshot()

    async def embed(
        self, inputs: Inputs, *, dimensions: int | None, normalize: bool | None, truncate: bool
    ) -> Embeddings:
        """Queue a job of checked inputs and wait for it. Raises Overloaded: the queue is full; Unavailable: the worker
        ended while it was at this job; what the worker answered with."""
        if self._closing:
            raise self._unloaded()
        if len(self._queue) >= MAX_QUEUED or sum(queued.size for queued in self._queue) > MAX_QUEUED_SIZE:
            raise Overloaded(f"{len(self._queue)} requests are waiting for {self.spec.root}", retry_after_s=1.0)
        job = Job(inputs, dimensions, normalize, truncate, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._wake.set()
        try:
            return await job.done
        except asyncio.CancelledError:
            if job is self._current and self._worker is not None:
                self._worker.cancel(job.number)
            elif job in self._queue:
                self._queue.remove(job)
            raise

    @property
    def waiting(self) -> int:
        """Jobs queued or computed."""
        return len(self._queue) + (self._current is not None)

    async def close(self, *, drain: bool) -> None:
        """Take no more jobs; with ``drain`` those that wait are still computed. ``run`` returns soon after."""
        self._closing = True
        if not drain:
            self._refuse_queued(self._unloaded())
            if self._worker is not None:
                await self._worker.kill()
        await self._become("draining")
        self._wake.set()

    async def run(self) -> None:
        """Owns the worker from load to unload; returns when the model is unloaded or can never be loaded."""
        crashes = 0
        try:
            while not self._closing:
                began = time.monotonic()
                try:
                    await self._load()
                    await self._serve()
                    return
                except WorkerGone as exc:
                    if self._closing:
                        return
                    crashes = 0 if time.monotonic() - began > self._limits.steady_s else crashes
                    crashes += 1
                    if self._loaded is None:
                        raise Unavailable(f"{exc} while it loaded", code="worker_crashed", retry_after_s=5.0) from exc
                    await self._pause(str(exc), crashes)
                finally:
                    await self._dismiss()
        except NodeError as exc:
            log.warning("load.failed root=%s code=%s reason=%s", self.spec.root, exc.code, exc)
            self._error = exc
        finally:
            self._closing = True
            self._refuse_queued(self._error or self._unloaded())
            await self._become("absent")

    async def _load(self) -> None:
        began = time.monotonic()
        await self._become("loading")
        try:
            async with asyncio.timeout(self._limits.load_timeout_s):
                self._worker = await self._hire()
                if self._closing:
                    raise WorkerGone("not wanted any more")
                request = wire.Load(self._directory, self.precision)
                reply, _ = await self._worker.ask(
                    request, silence_s=2 * self._limits.load_timeout_s, progress=self._follow
                )
        except TimeoutError:
            limit = self._limits.load_timeout_s
            raise Unavailable(f"loading took over {limit:g} s", code="load_timeout", retry_after_s=limit) from None
        if not isinstance(reply, wire.Loaded):
            raise WorkerGone(f"worker {self._worker.pid} answered something else")
        self._loaded, self._error = reply, None
        self._load_s = time.monotonic() - began
        log.info(
            "load.done root=%s device=%s pid=%d s=%.2f", self.spec.root, reply.device, self._worker.pid, self._load_s
        )
        await self._become("draining" if self._closing else "ready")

    def _follow(self, phase: wire.Phase) -> None:
        if phase == "warming" and self.state == "loading":
            self.state = "warming"

    async def _serve(self) -> None:
        """Job after job until the model is to be unloaded. Raises WorkerGone."""
        assert self._worker is not None
        worker = self._worker
        worker.when_ended(self._wake.set)
        while True:
            while self._queue:
                await self._compute(worker, self._queue.popleft())
            if self._closing:
                return
            if not worker.alive:
                raise WorkerGone(f"worker {worker.pid} ended while it was idle")
            self._wake.clear()
            await self._wake.wait()

    async def _compute(self, worker: WorkerProcess, job: Job) -> None:
        if job.done.done():
            return
        self._current = job
        try:
            reply, payload = await worker.ask(job.request(), silence_s=self._limits.silence_s)
            if not answers(job, reply, payload):
                raise WorkerGone(f"worker {worker.pid} answered something else")
        except WorkerGone as exc:
            crashed = Unavailable(str(exc), code="worker_crashed", retry_after_s=1.0)
            _fail(job, self._unloaded() if self._closing else crashed)
            raise
        except NodeError as exc:
            _fail(job, exc)
        else:
            if isinstance(reply, wire.Vectors) and not job.done.done():
                job.done.set_result(self._embeddings(job, reply, payload))
        finally:
            self._current = None

    def _embeddings(self, job: Job, reply: wire.Vectors, payload: bytes) -> Embeddings:
        return Embeddings(
            vectors=np.frombuffer(payload, dtype="<f4").reshape(reply.rows, reply.width),
            prompt_tokens=reply.prompt_tokens,
            model=self.snapshot(),
            seconds=time.monotonic() - job.since,
            truncated=reply.truncated,
        )

    async def _pause(self, reason: str, crashes: int) -> None:
        """Between a crash and the next try: none after the first, then longer and longer; nobody is kept waiting."""
        pause_s = 0.0 if crashes < 2 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (crashes - 2))
        log.warning("worker.crashed root=%s crashes=%d next_try_s=%.1f %s", self.spec.root, crashes, pause_s, reason)
        await self._become("loading")
        if not pause_s or self._closing:
            return
        self._error = Unavailable(f"{reason}; it is started again", code="worker_crashed", retry_after_s=pause_s)
        self._refuse_queued(self._error)
        await self._become("loading")
        until = time.monotonic() + pause_s
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                break
            self._refuse_queued(self._error)
        self._error = None

    async def _dismiss(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    def _refuse_queued(self, error: NodeError) -> None:
        while self._queue:
            _fail(self._queue.popleft(), error)

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    def _unloaded(self) -> NotFound:
        return NotFound(f"{self.spec.root} is not loaded any more", code="model_not_loaded")


def answers(job: Job, reply: wire.Reply, payload: bytes) -> bool:
    """Is this an answer to that job, and all of it?"""
    if isinstance(reply, wire.Vectors):
        whole = len(payload) == 4 * reply.rows * reply.width and reply.rows == len(job.inputs)
        return reply.job == job.number and whole
    return isinstance(reply, wire.Dropped) and reply.job == job.number and job.done.done()


def _fail(job: Job, error: NodeError) -> None:
    if not job.done.done():
        job.done.set_exception(error)
