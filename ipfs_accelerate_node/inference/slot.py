"""One loaded model: its state, the task that owns its worker process, and the desk where its requests are answered.

``Slot.run`` starts and ends the worker; what is asked of it goes over the desk. The worker's end costs the jobs it was
at; the others wait for its successor, unless that keeps ending too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace

from ipfs_accelerate_node.errors import NodeError, NotFound, Unavailable
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.desk import Desk
from ipfs_accelerate_node.inference.jobs import Answer, Job
from ipfs_accelerate_node.inference.model import Candidate, LoadedModel, ModelSpec, ModelStats, State
from ipfs_accelerate_node.inference.phases import Phases
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess
from ipfs_accelerate_node.inference.wanted import AUTO, EXACT, NARROW, Placed, Wanted

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0

Place = Callable[[ModelSpec, Wanted, Callable[[State], None]], Awaitable[Placed]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. silence: without a sign of life from the worker. drain: for queued jobs when the model is unloaded.
    steady: a worker that lived so long was not part of a series of crashes. wait: a request that would wait longer is
    refused. share_identical: identical requests share one computation."""

    load_timeout_s: float
    silence_s: float
    drain_timeout_s: float
    steady_s: float
    wait_s: float = 2.0
    share_identical: bool = True


class Slot:
    """place: brings the model onto a device. keep_alive_s: idle seconds after which it ends by itself."""

    def __init__(
        self,
        spec: ModelSpec,
        wanted: Wanted,
        *,
        names: tuple[str, ...],
        place: Place,
        limits: Limits,
        keep_alive_s: float,
        pinned: bool,
    ) -> None:
        self.spec = spec
        self.wanted = wanted
        self.names = names
        self.alias: str | None = None
        self.state: State = "loading"
        self.keep_alive_s = keep_alive_s
        self.pinned = pinned
        self._place = place
        self._limits = limits
        self._wake = asyncio.Event()
        self._closing = False
        self._desk = Desk(wait_s=limits.wait_s, share=limits.share_identical, quiet=self._quiet)
        self._placing: asyncio.Future[Placed] | None = None
        self._placed: Placed | None = None  # the last one; its worker may have ended
        self._worker: WorkerProcess | None = None
        self._load_s = 0.0
        self._phases = Phases()
        self._choice: tuple[Candidate, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._error: NodeError | None = None  # why there is no worker, while there is none
        self._changed = asyncio.Condition()
        self._shown: tuple[tuple[object, ...], LoadedModel] | None = None

    def snapshot(self) -> LoadedModel:
        """As it is now; the same object as long as nothing changes, for every request asks."""
        worker = self._worker
        looked = (
            self.state, self.alias, self.names, self.pinned, self.keep_alive_s, self._load_s, self._choice,
            self._placed, worker, worker.memory_bytes if worker else 0,
        )  # fmt: skip
        if self._shown is None or self._shown[0] != looked:
            self._shown = looked, self._looked()
        return self._shown[1]

    def _looked(self) -> LoadedModel:
        loaded, worker = self._placed.loaded if self._placed else None, self._worker
        known = LoadedModel(
            id=self.alias or (self.names[0] if self.names else self.spec.root),
            root=self.spec.root,
            names=self.names,
            device="",
            engine="openvino" if self.wanted.device.startswith("openvino") else "torch",
            precision=self.wanted.precision,
            implementation="REAL",
            source=self.spec.source,
            task=self.wanted.task or self.spec.task or "",
            width=0,
            max_tokens=0,
            state=self.state,
            load_s=self._load_s,
            pid=worker.pid if worker else None,
            versions={},
            memory_bytes=worker.memory_bytes if worker else 0,
            choice=self._choice,
            keep_alive_s=None if math.isinf(self.keep_alive_s) else self.keep_alive_s,
            pinned=self.pinned,
        )
        if loaded is None:
            return known
        return replace(
            known,
            device=loaded.device,
            engine=loaded.engine,
            precision=loaded.precision,
            task=loaded.task,
            tasks=loaded.tasks,
            width=loaded.width,
            max_tokens=loaded.max_tokens,
            versions=dict(loaded.versions),
            vocab_size=loaded.vocab_size,
            architecture=loaded.architecture,
            pooling=loaded.pooling,
            normalize=loaded.normalize,
            notes=(*self._notes, *loaded.notes),
            device_bytes=loaded.device_bytes if worker else 0,
        )

    def answers_to(self, wanted: Wanted) -> bool | None:
        """Is this what is wanted? None: it is not known yet, for it is still being placed."""
        if wanted == self.wanted:
            return True
        if AUTO not in (wanted.precision, self.wanted.precision) and wanted.precision != self.wanted.precision:
            return False
        if self._placed is None:
            return None
        loaded = self._placed.loaded
        task = (wanted.task or next(iter(loaded.tasks), loaded.task)) == loaded.task
        # ``auto`` is content with what it might have chosen itself
        precise = loaded.precision in ((EXACT, NARROW) if wanted.precision == AUTO else (wanted.precision,))
        return task and precise and wanted.device in (AUTO, loaded.device)

    @property
    def unmeasured(self) -> bool:
        """It stands where a fixed order put it, and measuring might put it elsewhere."""
        return self._placed is not None and not self._placed.measured

    def does(self, task: str | None) -> bool:
        """Is it loaded for this task, as far as is known? None: any."""
        known = self._placed.loaded.task if self._placed else self.wanted.task
        return task is None or known is None or task == known

    def is_like(self, model: LoadedModel) -> bool:
        """Is this the one that the snapshot was taken of?"""
        if self._placed is None or not model.device:
            return model.precision == self.wanted.precision and self.does(model.task or None)
        now = self._placed.loaded
        return (model.task, model.device, model.precision) == (now.task, now.device, now.precision)

    @property
    def on_host(self) -> bool:
        """Does it take the machine's own memory?"""
        return self._placed is None or not self._placed.loaded.device.startswith("cuda")

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    @property
    def idle(self) -> bool:
        return self.state == "ready" and not self.waiting and not self._closing

    async def settled(self) -> None:
        """Waits until it is known what was placed, or that nothing can be."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._placed is not None or self.state == "absent")

    async def ready(self) -> LoadedModel:
        """Waits until the model answers. Raises the error that keeps it from it; NotFound once it is unloaded."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.state in ("ready", "draining", "absent") or self._error is not None
            )
        if self._error is not None:
            raise self._error
        if self.state != "ready":
            raise self._unloaded()
        return self.snapshot()

    async def ask(self, job: Job) -> Answer:
        """The answer to a job; see ``Desk.ask``. Raises NotFound: it is being unloaded; Unavailable: its worker keeps
        ending, and is not tried again yet."""
        if self._closing:
            raise self._unloaded()
        if self._error is not None:
            raise self._error
        return await self._desk.ask(job)

    def stream(self, job: Job) -> AsyncGenerator[wire.Delta, None]:
        """What is added to its answers; see ``Desk.stream``. Raises as ``ask``."""
        if self._closing:
            raise self._unloaded()
        if self._error is not None:
            raise self._error
        return self._desk.stream(job)

    @property
    def waiting(self) -> int:
        """Jobs queued or computed."""
        return self._desk.waiting

    @property
    def last_used(self) -> float:
        return self._desk.last_used

    def stats(self) -> ModelStats:
        desk, known = self._desk, self.snapshot()
        return ModelStats(
            model=known.id, root=known.root, task=known.task, waiting=desk.queued, flying=desk.flying,
            waiting_tokens=desk.tokens, tokens_per_s=desk.tokens_per_s, device=known.device,
            load_phases=dict(self._phases.seconds), **asdict(desk.counts),
        )  # fmt: skip

    def _quiet(self) -> None:
        """Nothing waits any more, or nothing works any more."""
        if self._closing or self._desk.lost is not None:
            self._wake.set()

    def keep(self, *, keep_alive_s: float | None, pinned: bool | None) -> None:
        """Change how long it stays; None leaves it as it is."""
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s
        if pinned is not None:
            self.pinned = pinned
        self._wake.set()

    async def close(self, *, drain: bool) -> None:
        """Take no more jobs; with ``drain`` those that wait are still computed. ``run`` returns soon after."""
        self._closing = True
        if not drain:
            self._desk.refuse(self._unloaded())
            if self._placing is not None:
                self._placing.cancel()
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
                    self._desk.detach(exc, self._unloaded() if self._closing else None)
                    if self._closing:
                        return
                    crashes = 0 if time.monotonic() - began > self._limits.steady_s else crashes
                    crashes += 1
                    if self._placed is None:
                        raise Unavailable(f"{exc} while it loaded", code="worker_crashed", retry_after_s=5.0) from exc
                    await self._pause(str(exc), crashes)
                finally:
                    await self._dismiss()
        except NodeError as exc:
            log.warning("load.failed root=%s code=%s reason=%s", self.spec.root, exc.code, exc)
            self._error = exc
        finally:
            self._closing = True
            self._desk.detach(None, self._error or self._unloaded())
            self._desk.refuse(self._error or self._unloaded())
            await self._become("absent")

    async def _load(self) -> None:
        """Raises WorkerGone (also when it is unloaded meanwhile) and the error that refuses the model."""
        began = time.monotonic()
        await self._become("loading")
        self._phases = Phases()
        self._phases.enter("placing")
        # what was chosen once is not chosen again: a successor stands where the first one stood
        wanted = self.wanted if self._placed is None else self._placed.wanted
        self._placing = asyncio.ensure_future(self._place(self.spec, wanted, self._follow))
        try:
            placed = await self._placing
        except asyncio.CancelledError:
            if self._closing and self._placing.cancelled():
                raise WorkerGone("unloaded while it was being loaded") from None
            raise
        finally:
            self._placing = None
            self._phases.enter(None)
        self._worker, self._placed, self._error = placed.worker, placed, None
        self._choice, self._notes = placed.choice or self._choice, placed.notes or self._notes
        self._load_s = time.monotonic() - began
        self._desk.last_used = time.monotonic()
        loaded = placed.loaded
        log.info(
            "load.done root=%s task=%s device=%s precision=%s pid=%d s=%.2f",
            self.spec.root, loaded.task, loaded.device, loaded.precision, placed.worker.pid, self._load_s,
        )  # fmt: skip
        await self._become("draining" if self._closing else "ready")

    def _follow(self, state: State) -> None:
        self._phases.enter(state)
        if self.state != "draining":
            self.state = state

    async def _serve(self) -> None:
        """Until the model is to be unloaded, or was idle for too long. Raises WorkerGone."""
        assert self._worker is not None
        worker, desk, loop = self._worker, self._desk, asyncio.get_running_loop()
        worker.serve(desk.receive, self._wake.set)
        if self._placed is not None:
            desk.attach(worker, self._placed.loaded)
        silence_s = self._limits.silence_s
        while True:
            if not worker.alive:
                raise await worker.verdict()
            if desk.lost is not None:
                raise WorkerGone(str(desk.lost))
            if self._closing and not desk.waiting:
                return
            left_s = keep_s = math.inf if self.pinned or self._closing else self.keep_alive_s
            if not desk.waiting and (left_s := desk.last_used + keep_s - time.monotonic()) <= 0:
                log.info("unload.idle root=%s idle_s=%.0f", self.spec.root, self.keep_alive_s)
                await self.close(drain=True)
                continue
            silent_s = loop.time() - worker.heard if desk.flying else 0.0
            if silent_s >= silence_s:
                raise await worker.hung(silence_s)
            self._wake.clear()
            await _woken(self._wake, min(left_s, silence_s - silent_s))

    async def _pause(self, reason: str, crashes: int) -> None:
        """Between a crash and the next try: none after the first, then longer and longer; nobody is kept waiting."""
        pause_s = 0.0 if crashes < 2 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (crashes - 2))
        log.warning("worker.crashed root=%s crashes=%d next_try_s=%.1f %s", self.spec.root, crashes, pause_s, reason)
        await self._become("loading")
        if not pause_s or self._closing:
            return
        self._error = Unavailable(f"{reason}; it is started again", code="worker_crashed", retry_after_s=pause_s)
        self._desk.refuse(self._error)
        await self._become("loading")
        until = time.monotonic() + pause_s
        while not self._closing and (left_s := until - time.monotonic()) > 0:
            self._wake.clear()
            if not await _woken(self._wake, left_s):
                break
            self._desk.refuse(self._error)
        self._error = None

    async def _dismiss(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    def _unloaded(self) -> NotFound:
        return NotFound(f"{self.spec.root} is not loaded any more", code="model_not_loaded")


async def _woken(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event came in time."""
    try:
        async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
