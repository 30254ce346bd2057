"""From a wanted model to a worker that holds it: hire, inspect, make room, choose, convert, load.

One ``Placing`` serves every slot of a registry. It owns the worker that waits with torch imported, and what was found
out about devices; a worker that it hands over belongs to the slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from ipfs_accelerate_node.errors import DeviceUnavailable, ModelUnsupported, Unavailable
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.calibration import Calibrations
from ipfs_accelerate_node.inference.choosing import UNKNOWN, Choosing
from ipfs_accelerate_node.inference.devices import SURVEY_S, Kind, check_available, kind_of, no_gpu, survey
from ipfs_accelerate_node.inference.jobs import Answer
from ipfs_accelerate_node.inference.model import Accelerator, ModelSpec
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.process import WorkerGone, WorkerProcess
from ipfs_accelerate_node.inference.wanted import AUTO, EXACT, Placed, Tell, Wanted

log = logging.getLogger(__name__)

CONVERT_TIMEOUT_S = 900.0
PROCESS_BYTES: dict[Kind, int] = {"torch": 400 << 20, "openvino": 150 << 20}  # of a worker beside the weights
_NO_FOLDER = "this node keeps no converted models"


class MakeRoom(Protocol):
    """See ``Slots.make_room``."""

    async def __call__(
        self, need_bytes: int, device: str, free: Callable[[], Awaitable[int]] | None = None
    ) -> None: ...


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
        self._choosing = Choosing(self, self.calibrations, no_folder="" if cache else _NO_FOLDER)

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

    async def check_device(self, device: str, precision: str | None) -> None:
        """Raises DeviceUnavailable with the reason: not here, or does not compute in that precision (None: any)."""
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
        """A worker with the model loaded. thorough: for ``auto``, convert, measure and compare what was not yet; else
        what is known decides. Raises what refuses the model, and WorkerGone."""
        if AUTO not in (wanted.device, wanted.precision):
            return await self.bring(spec, wanted, tell)
        if wanted.device != AUTO and not thorough and not self.calibrations.judged(spec.root):
            return await self._unjudged(spec, wanted, tell)
        hired: tuple[Kind, ...] = ("openvino",) if "torch" in self.spares else ("openvino", "torch")
        try:
            described = await self._first_look(spec)
            wanted = replace(wanted, task=self._task(described, wanted))
            if wanted.device == AUTO:
                return await self._choosing.device(spec, wanted, described, tell, thorough=thorough)
            return await self._choosing.precision(spec, wanted, tell, thorough=thorough)
        finally:
            await self._dismiss(*hired)  # where it was hired to choose, and not taken

    async def _unjudged(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> Placed:
        """On a named device, of a model of which nothing is known: without asking for what cannot be there."""
        placed = await self.bring(spec, replace(wanted, precision=EXACT), tell)
        return replace(placed, notes=(f"{EXACT} by choice: {UNKNOWN}",))

    async def bring(self, spec: ModelSpec, wanted: Wanted, tell: Tell) -> Placed:
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
            reply, _ = await self.asked(worker, request, tell)
            if not isinstance(reply, wire.Loaded):
                raise WorkerGone(f"worker {worker.pid} answered something else")
        except BaseException:
            await worker.kill()
            await worker.stop()
            raise
        return Placed(worker, reply, replace(wanted, task=task))

    async def asked(self, worker: WorkerProcess, request: wire.Request, tell: Tell) -> Answer:
        """The answer, and its payload, within the load's time. Raises Unavailable(load_timeout)."""

        def follow(phase: wire.Phase) -> None:
            if phase == "warming":
                tell("warming")

        limit_s = self._load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await worker.ask(request, silence_s=limit_s + 60, progress=follow)
        except TimeoutError:
            raise Unavailable(f"loading took over {limit_s:g} s", code="load_timeout", retry_after_s=limit_s) from None

    async def _described(self, worker: WorkerProcess, spec: ModelSpec) -> wire.Described:
        assert spec.path is not None
        reply, _ = await self.asked(worker, wire.Inspect(str(spec.path.absolute())), lambda _: None)
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


async def _free_bytes(worker: WorkerProcess, device: str) -> int:
    """What a card has left, as the worker that is about to load on it sees it. Raises Unavailable: out_of_memory,
    where not even asking fits; WorkerGone."""
    reply, _ = await worker.ask(wire.Devices(), silence_s=SURVEY_S)
    found = reply.devices if isinstance(reply, wire.DeviceList) else []
    return next((one.free_bytes for one in found if one.device == device and one.free_bytes is not None), 1 << 62)
