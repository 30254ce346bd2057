"""From a wanted model to a worker that holds it: hire, inspect, make room, choose, convert, load.

One ``Placing`` serves every slot of a registry. It owns the worker that waits with torch imported, and what was found
out about devices; a worker that it hands over belongs to the slot.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from ipfs_accelerate_node.errors import DeviceUnavailable, ModelUnsupported, NodeError, Unavailable
from ipfs_accelerate_node.inference import calibration, wire
from ipfs_accelerate_node.inference.calibration import MEASURE_S, Calibrations, Fitting, key_of
from ipfs_accelerate_node.inference.devices import SURVEY_S, Kind, check_available, kind_of, no_gpu, survey
from ipfs_accelerate_node.inference.memory import available_bytes
from ipfs_accelerate_node.inference.model import Accelerator, Candidate, ModelSpec, State
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess

log = logging.getLogger(__name__)

CONVERT_TIMEOUT_S = 900.0
PROCESS_BYTES: dict[Kind, int] = {"torch": 400 << 20, "openvino": 150 << 20}  # of a worker beside the weights
_NO_FOLDER = "this node keeps no converted models"

Tell = Callable[[State], None]


class MakeRoom(Protocol):
    """See ``Slots.make_room``."""

    async def __call__(
        self, need_bytes: int, device: str, free: Callable[[], Awaitable[int]] | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """task: None is the model's first. device: ``auto`` is for us to choose."""

    task: str | None = None
    device: str = "auto"
    precision: str = "f32"


@dataclass(frozen=True, slots=True)
class Placed:
    """A worker that answers. wanted: what would bring the same again. choice: empty for a named device. measured: every
    device that runs the model has a figure, so that another choice would be the same."""

    worker: WorkerProcess
    loaded: wire.Loaded
    wanted: Wanted
    choice: tuple[Candidate, ...] = ()
    measured: bool = True


@dataclass(slots=True, eq=False)
class _Race:
    """entered: devices that run the model, measured or not; refused: those that do not. best: the fastest of what was
    measured in this race, still loaded."""

    refused: list[Candidate]
    entered: list[Candidate] = field(default_factory=list)
    best: Placed | None = None
    best_ms: float = math.inf
    failure: NodeError | None = None

    def winner(self) -> str:
        """The fastest; the first where none has a figure. Raises why none runs."""
        measured = [(c.median_ms, c.device) for c in self.entered if c.median_ms is not None]
        if measured:
            return min(measured)[1]
        if not self.entered:
            raise self.failure or Unavailable("no device runs the model", code="worker_crashed", retry_after_s=5.0)
        return self.entered[0].device

    async def dismiss(self) -> None:
        best, self.best = self.best, None
        if best is not None:
            await best.worker.stop()


class Placing:
    """make_room: frees so many bytes on a device if it can. cache: folder for converted models and calibrations."""

    def __init__(
        self,
        *,
        threads: int,
        cache: Path | None,
        load_timeout_s: float,
        make_room: MakeRoom,
    ) -> None:
        self._threads = threads
        self._cache = cache
        self._load_timeout_s = load_timeout_s
        self._make_room = make_room
        self.spares: dict[Kind, WorkerProcess] = {}  # without a model, their runtime imported
        self._found: dict[Kind, list[Accelerator]] = {}
        self._asking: dict[Kind, asyncio.Lock] = {"torch": asyncio.Lock(), "openvino": asyncio.Lock()}
        self.calibrations = Calibrations(cache / "calibration.json" if cache else None)

    # -- workers

    async def prestart(self) -> None:
        self.spares["torch"] = await WorkerProcess.start(threads=self._threads, kind="torch")

    async def close(self) -> None:
        for worker in self.spares.values():
            await worker.kill()
            await worker.stop()

    async def hire(self, kind: Kind) -> WorkerProcess:
        """The spare worker if there is one, else a new one. Raises Unavailable."""
        if (waiting := self.spares.pop(kind, None)) is not None:
            if waiting.alive:
                return waiting
            await waiting.stop()
        try:
            return await WorkerProcess.start(threads=self._threads, kind=kind)
        except OSError as exc:
            raise Unavailable(f"no process for the model: {exc.strerror}", retry_after_s=5.0) from exc

    # -- devices

    async def devices(self, kind: Kind, *, keep: bool = True) -> list[Accelerator]:
        """What a runtime reports; found once, then remembered. May take seconds. keep: the worker that was asked waits
        for the model that is loaded next."""
        async with self._asking[kind]:
            if kind not in self._found:
                worker = await self.hire(kind)
                try:
                    found = await survey(worker, kind)
                    gpu = any(one.device.startswith("cuda") for one in found)  # it holds memory there
                    if keep and worker.alive and not gpu:
                        self.spares.setdefault(kind, worker)
                finally:
                    if self.spares.get(kind) is not worker:
                        await worker.stop()
                if not all(one.available for one in found):
                    return found  # the runtime did not answer: asked again the next time
                self._found[kind] = found
            return list(self._found[kind])

    async def check_device(self, device: str, precision: str) -> None:
        """Raises DeviceUnavailable with the reason: it is not here, or does not compute in that precision."""
        if device.startswith("cuda") and (reason := no_gpu()):
            raise DeviceUnavailable(f"device {device} is not available: {reason}", device=device, reason=reason)
        if kind_of(device) == "openvino" and self._cache is None:
            raise DeviceUnavailable(f"device {device} is not available: {_NO_FOLDER}", device=device)
        if device in ("auto", "cpu"):
            return
        try:
            check_available(device, await self.devices(kind_of(device)), precision)
        except DeviceUnavailable:
            await self._dismiss("openvino")
            raise

    async def _dismiss(self, *kinds: Kind) -> None:
        """Ends spare workers that nobody needs now."""
        for kind in kinds:
            if (waiting := self.spares.pop(kind, None)) is not None:
                await waiting.stop()

    # -- models

    async def place(self, spec: ModelSpec, wanted: Wanted, tell: Tell, *, thorough: bool) -> Placed:
        """A worker with the model loaded. thorough: for ``auto``, convert and measure what was not measured yet; else
        what is known decides. Raises what refuses the model, and WorkerGone."""
        if wanted.device != "auto":
            return await self._bring(spec, wanted, tell)
        hired: tuple[Kind, ...] = ("openvino",) if "torch" in self.spares else ("openvino", "torch")
        try:
            return await self._choose(spec, wanted, tell, thorough=thorough)
        finally:
            await self._dismiss(*hired)  # where it was hired to choose, and not taken

    async def _bring(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> Placed:
        try:
            return await self._bring_once(spec, wanted, tell)
        except Unavailable as exc:
            if exc.code != "out_of_memory":
                raise
            log.warning("load.out_of_memory root=%s device=%s", spec.root, wanted.device)
            await self._make_room(1 << 62, wanted.device)
            return await self._bring_once(spec, wanted, tell)

    async def _bring_once(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> Placed:
        """Named device. A worker that does not end up with the model is ended here."""
        assert spec.path is not None
        kind = kind_of(wanted.device)
        worker = await self.hire(kind)
        try:
            described = await self._described(worker, spec)
            task = self._task(described, wanted)
            need_bytes = described.estimate_bytes.get(wanted.precision, 0) + PROCESS_BYTES[kind]
            ask = partial(_free_bytes, worker, wanted.device) if wanted.device.startswith("cuda") else None
            await self._make_room(need_bytes, wanted.device, ask)
            artefact = await self._converted(spec, task, wanted.precision, tell) if kind == "openvino" else None
            tell("loading")
            request = wire.Load(
                str(spec.path.absolute()), task, wanted.device, wanted.precision, str(artefact) if artefact else None
            )
            reply = await self._asked(worker, request, tell)
            if not isinstance(reply, wire.Loaded):
                raise WorkerGone(f"worker {worker.pid} answered something else")
        except BaseException:
            await worker.kill()
            await worker.stop()
            raise
        return Placed(worker, reply, replace(wanted, task=task))

    async def _asked(self, worker: WorkerProcess, request: wire.Request, tell: Tell) -> wire.Reply:
        """The answer within the load's time. Raises Unavailable(load_timeout)."""

        def follow(phase: wire.Phase) -> None:
            if phase == "warming":
                tell("warming")

        limit_s = self._load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                reply, _ = await worker.ask(request, silence_s=limit_s + 60, progress=follow)
        except TimeoutError:
            raise Unavailable(f"loading took over {limit_s:g} s", code="load_timeout", retry_after_s=limit_s) from None
        return reply

    async def _described(self, worker: WorkerProcess, spec: ModelSpec) -> wire.Described:
        assert spec.path is not None
        reply = await self._asked(worker, wire.Inspect(str(spec.path.absolute())), lambda _: None)
        if not isinstance(reply, wire.Described) or not reply.tasks:
            raise WorkerGone(f"worker {worker.pid} answered something else")
        return reply

    @staticmethod
    def _task(described: wire.Described, wanted: Wanted) -> str:
        task = wanted.task or described.tasks[0]
        if task not in described.tasks:
            raise ModelUnsupported(
                f"this {described.architecture} model does {', '.join(described.tasks)}, not {task[:60]}",
                code="task_unsupported",
            )
        return task

    async def _converted(self, spec: ModelSpec, task: str, precision: str, tell: Tell) -> Path:
        """The model in OpenVINO's form; made once, in a process of its own."""
        if self._cache is None:
            raise DeviceUnavailable(f"OpenVINO is not available: {_NO_FOLDER}", device="openvino:CPU")
        assert spec.path is not None
        tell("converting")
        try:
            async with asyncio.timeout(CONVERT_TIMEOUT_S):
                return await artefacts.ensure(
                    spec.path.absolute(), spec.root, task, precision, self._cache, lambda _: None
                )
        except TimeoutError:
            raise Unavailable(f"converting took over {CONVERT_TIMEOUT_S:g} s", code="load_timeout") from None

    # -- choosing

    async def _choose(self, spec: ModelSpec, wanted: Wanted, tell: Tell, *, thorough: bool) -> Placed:
        """The fastest device that takes the model, by measurement; the first in a fixed order where there is none."""
        described = await self._first_look(spec)
        task = self._task(described, wanted)
        wanted = replace(wanted, task=task)
        found = await self.devices("torch")
        if self._cache is not None:
            found += await self.devices("openvino")
        need_bytes = described.estimate_bytes.get(wanted.precision, 0)
        judged = calibration.fitting(
            found,
            precision=wanted.precision,
            need_bytes=need_bytes,
            convertible="" if self._cache else _NO_FOLDER,
            free_bytes=available_bytes(),
        )
        fits = [one for one in judged if not one.refusal]
        refused = [Candidate(o.accelerator.device, wanted.precision, None, o.refusal) for o in judged if o.refusal]
        if not fits:
            reasons = "; ".join(f"{c.device}: {c.reason}" for c in refused) or "no device was found"
            raise ModelUnsupported(f"no device takes the model: {reasons}", code="model_too_large")
        if len(fits) == 1:
            placed = await self._bring(spec, replace(wanted, device=fits[0].accelerator.device), tell)
            only = Candidate(placed.wanted.device, wanted.precision, None, "the only device that takes the model", True)
            return replace(placed, choice=(only, *refused))
        return await self._race(spec, wanted, tell, fits, refused, thorough=thorough)

    async def _first_look(self, spec: ModelSpec) -> wire.Described:
        """By the worker that is most likely needed next; it goes on waiting as the spare."""
        worker = await self.hire("torch")
        try:
            described = await self._described(worker, spec)
            self.spares.setdefault("torch", worker)
            return described
        finally:
            if self.spares.get("torch") is not worker:
                await worker.kill()
                await worker.stop()

    async def _race(
        self,
        spec: ModelSpec,
        wanted: Wanted,
        tell: Tell,
        fits: list[Fitting],
        refused: list[Candidate],
        *,
        thorough: bool,
    ) -> Placed:
        """Measures what has no figure yet (``thorough``), keeping the fastest loaded; then the figures decide."""
        race = _Race(refused)
        try:
            for fit in fits:
                device, precision = fit.accelerator.device, wanted.precision
                key = key_of(spec.root, wanted.task or "", fit.accelerator, precision)
                if (figure := self.calibrations.find(key)) is not None:
                    race.entered.append(Candidate(device, precision, figure.median_ms, f"measured {figure.at}"))
                elif not thorough:
                    race.entered.append(Candidate(device, precision, None, "not measured yet: `load` measures"))
                else:
                    await self._run(race, spec, replace(wanted, device=device), key, tell)
            device = race.winner()
            if race.best is None or race.best.wanted.device != device:
                await race.dismiss()
                race.best = await self._bring(spec, replace(wanted, device=device), tell)
        except BaseException:
            await race.dismiss()
            raise
        choice = calibration.chosen([*race.entered, *race.refused], device)
        log.info("load.chosen root=%s device=%s among=%s", spec.root, device, [(c.device, c.median_ms) for c in choice])
        measured = all(c.median_ms is not None for c in race.entered)
        return replace(race.best, choice=choice, measured=measured)

    async def _run(self, race: _Race, spec: ModelSpec, here: Wanted, key: tuple[str, ...], tell: Tell) -> None:
        """One device of the race: loaded, measured, and kept if it is the fastest so far."""
        try:
            placed, samples_ns = await self._measured(spec, here, tell)
        except (NodeError, WorkerGone) as exc:
            race.failure = exc if isinstance(exc, NodeError) else race.failure
            race.refused.append(Candidate(here.device, here.precision, None, f"does not run: {exc}"[:300]))
            return
        figure = await asyncio.to_thread(self.calibrations.note, key, samples_ns)
        race.entered.append(Candidate(here.device, here.precision, figure.median_ms, "measured now"))
        if figure.median_ms < race.best_ms:
            race.best, placed, race.best_ms = placed, race.best, figure.median_ms
        if placed is not None:
            await placed.worker.stop()

    async def _measured(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> tuple[Placed, list[int]]:
        placed = await self._bring(spec, wanted, tell)
        try:
            reply = await self._asked(placed.worker, wire.Calibrate(MEASURE_S), tell)
            if not isinstance(reply, wire.Timings) or not reply.samples_ns:
                raise WorkerGone(f"worker {placed.worker.pid} answered something else")
        except BaseException:
            await placed.worker.kill()
            await placed.worker.stop()
            raise
        return placed, reply.samples_ns


async def _free_bytes(worker: WorkerProcess, device: str) -> int:
    """What a card has left, as the worker that is about to load on it sees it. Raises Unavailable: out_of_memory,
    where not even asking fits; WorkerGone."""
    reply, _ = await worker.ask(wire.Devices(), silence_s=SURVEY_S)
    found = reply.devices if isinstance(reply, wire.DeviceList) else []
    return next((one.free_bytes for one in found if one.device == device and one.free_bytes is not None), 1 << 62)
