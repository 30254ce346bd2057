"""Where requests to one model are taken in and answered: each caller gets one answer, its own.

A caller puts a job down and waits. Whoever asks for the same as another one shares its computation. A caller who goes
away takes the job along, unless others wait for it too. When the worker ends, the jobs that it was at fail, and those
that it only had go to its successor, once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass

from ipfs_accelerate_node.errors import NodeError, Unavailable
from ipfs_accelerate_node.inference import frames, wire
from ipfs_accelerate_node.inference.jobs import Answer, Job
from ipfs_accelerate_node.inference.lanes import Lanes, real_tokens
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess

MAX_TRIES = 2


@dataclass(slots=True)
class Counts:
    """Since the model was loaded; see ``ModelStats``."""

    requests: int = 0
    failed: int = 0
    dropped: int = 0
    expired: int = 0
    shed: int = 0
    shared: int = 0
    passes: int = 0
    rows: int = 0
    tokens: int = 0
    padded: int = 0
    truncated: int = 0
    last_rows: int = 0
    last_tokens: int = 0
    last_padded: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0


class Desk:
    """wait_s: see ``Lanes``. share: identical requests share one computation. quiet: called when nothing waits any
    more."""

    def __init__(self, *, wait_s: float | None, share: bool, quiet: Callable[[], None]) -> None:
        self._lanes = Lanes(wait_s=wait_s)
        self._share = share
        self._quiet = quiet
        self._same: dict[Hashable, Job] = {}
        self._worker: WorkerProcess | None = None
        self.counts = Counts()
        self.last_used = time.monotonic()
        self.lost: NodeError | None = None  # nothing works in the worker any more, it says

    # -- callers

    async def ask(self, job: Job) -> Answer:
        """The answer to a job. Raises Overloaded: it was not taken; Unavailable: the worker ended while it was at it,
        or its deadline passed; what the worker answered with."""
        self.counts.requests += 1
        self.last_used = time.monotonic()
        shared = self._same.get(job.key) if self._share and job.key is not None else None
        if shared is not None:
            self.counts.shared += 1
            job = shared
        else:
            self._take(job)
        caller = job.join()
        try:
            if shared is None:
                self.pump()
            if job.expires is None:
                return await caller
            async with asyncio.timeout(max(0.0, job.expires - time.monotonic())):
                return await caller
        except TimeoutError:
            self.counts.expired += 1
            raise too_late() from None
        finally:
            if job.leave(caller) and not job.settled:
                self._drop(job)

    async def stream(self, job: Job) -> AsyncGenerator[wire.Delta, None]:
        """What is added to a job's answers, to their end. Raises as ``ask``; leaving it takes the job along."""
        asking = asyncio.ensure_future(self.ask(job))
        asking.add_done_callback(lambda _: job.deltas.end())
        try:
            while not asking.done():
                for delta in await job.deltas.take():
                    yield delta
            await asking
            job.deltas.end()
            for delta in await job.deltas.take():
                yield delta
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking})
            if not asking.cancelled():
                asking.exception()

    def _take(self, job: Job) -> None:
        try:
            self._lanes.put(job)
        except NodeError:
            self.counts.shed += 1
            raise
        if self._share and job.key is not None:
            self._same[job.key] = job

    def _drop(self, job: Job) -> None:
        """Nobody waits for it any more."""
        self._forget(job)
        self.counts.dropped += 1
        if not self._lanes.remove(job) and job.number in self._lanes.flying and self._worker is not None:
            self._worker.cancel(job.number)
        self._settle()

    def _forget(self, job: Job) -> None:
        if job.key is not None and self._same.get(job.key) is job:
            del self._same[job.key]

    def _settle(self) -> None:
        if not self.waiting:
            self._quiet()

    @property
    def waiting(self) -> int:
        """Jobs queued or computed."""
        return self._lanes.queued + len(self._lanes.flying)

    @property
    def queued(self) -> int:
        return self._lanes.queued

    @property
    def flying(self) -> int:
        return len(self._lanes.flying)

    @property
    def tokens(self) -> int:
        return self._lanes.tokens

    @property
    def tokens_per_s(self) -> float:
        return self._lanes.pace.tokens_per_s

    def refuse(self, error: NodeError) -> None:
        """All that wait get this answer."""
        for job in self._lanes.drain():
            self._answer_with(job, error)
        self._settle()

    def _answer_with(self, job: Job, error: NodeError) -> None:
        self._forget(job)
        self.counts.failed += 1
        job.fail(error)

    # -- the worker

    def attach(self, worker: WorkerProcess, loaded: wire.Loaded) -> None:
        """From now on jobs go to this worker; ``receive`` is to be given what it says."""
        self._worker, self.lost = worker, None
        self._lanes.at_once = loaded.together
        self._lanes.pace.pass_tokens = loaded.pass_tokens
        self.pump()

    def pump(self) -> None:
        """Give the worker what it may be given."""
        worker = self._worker
        if worker is None or not worker.alive:
            return
        if not self._lanes.flying:
            worker.heard = asyncio.get_running_loop().time()  # its silence counts from here
        while (job := self._lanes.next()) is not None:
            worker.send(job.request)

    def receive(self, reply: wire.Reply, payload: memoryview) -> None:
        """What the worker says of jobs. Raises WireError: it is no answer to any of them."""
        match reply:
            case wire.Answers(answers=answers, work=work, deltas=deltas):
                self._count(work)
                for delta in deltas:
                    job = self._lanes.flying.get(delta.job)
                    if job is None or not job.told(delta):
                        raise frames.WireError(f"a part of job {delta.job}, which asked for none")
                reached = 0
                for answer in answers:
                    size = frames.payload_bytes(answer) if isinstance(answer, wire.Outputs) else 0
                    self._land(answer, payload[reached : reached + size])
                    reached += size
            case wire.Progress(work=work):
                if work is not None:
                    self._count(work)
                return
            case _:
                self._land(reply, payload)
        self.last_used = time.monotonic()
        self.pump()
        self._settle()

    def _land(self, reply: wire.Reply, payload: wire.Payload) -> None:
        number = getattr(reply, "job", None)
        job = self._lanes.landed(number) if number is not None else None
        if job is None:
            raise frames.WireError(f"an answer to job {number}, which it has not")
        if isinstance(reply, wire.Failure):
            error = reply.error()
            self._answer_with(job, error)
            if error.code == "device_lost":  # CUDA does not come back in that process
                self.lost = error
                self._quiet()
        elif not job.answered_by(reply, payload):
            self._answer_with(job, Unavailable("the worker answered something else", code="worker_crashed"))
            raise frames.WireError(f"something else than job {number} asked for")
        elif isinstance(reply, wire.Dropped):
            self._forget(job)
            job.fail(too_late())
        else:
            self._forget(job)
            if isinstance(reply, wire.Outputs):
                self._note(job, reply)
            job.settle(reply, payload)

    def _note(self, job: Job, reply: wire.Outputs) -> None:
        timing, tokens = reply.timing, real_tokens(reply)
        self.counts.queue_s += timing.queue_s
        self.counts.truncated += sum(head.truncated for head in reply.heads)
        if not timing.tokenize_s:  # computed by itself: no pass tells of it
            self.counts.tokens += tokens
            self.counts.compute_s += timing.compute_s
            self._lanes.pace.passed(job.tokens, timing.compute_s)
        elif tokens:
            self._lanes.pace.was(job.tokens, tokens)

    def _count(self, work: wire.Work) -> None:
        counts = self.counts
        counts.passes += work.passes
        counts.rows += work.rows
        counts.tokens += work.tokens
        counts.padded += work.padded
        counts.tokenize_s += work.tokenize_s
        counts.compute_s += work.compute_s
        counts.last_rows, counts.last_tokens, counts.last_padded = work.last_rows, work.last_tokens, work.last_padded
        if work.passes:
            self._lanes.pace.passed(work.tokens, work.compute_s)

    def detach(self, gone: WorkerGone | None, unloaded: NodeError | None) -> None:
        """The worker is no more. gone: why; the jobs that it was at fail with that, the others that it had wait again.
        unloaded: all that it had fail with this instead."""
        worker, self._worker = self._worker, None
        struck = worker.struck() if worker is not None else frozenset()
        error = unloaded or Unavailable(str(gone), code="worker_crashed", retry_after_s=1.0)
        silent = gone is not None and gone.silent
        for job in sorted(self._lanes.flying.values(), key=lambda job: -job.number):
            job.tries += 1
            spent = job.number in struck or job.tries >= MAX_TRIES or job.deltas.told
            if unloaded or silent or spent or not job.wanted:
                self._lanes.landed(job.number)
                self._answer_with(job, error)
            else:
                self._lanes.again(job)
        self._settle()


def too_late() -> Unavailable:
    return Unavailable("the request's deadline passed before it was answered", code="deadline_exceeded")
