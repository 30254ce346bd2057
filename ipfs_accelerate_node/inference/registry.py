"""Which models are loaded, under which names; the node's only door to inference."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ipfs_accelerate_node.errors import (
    BadRequest,
    Conflict,
    DeviceUnavailable,
    InvalidInput,
    ModelUnsupported,
    NotFound,
    Unavailable,
)
from ipfs_accelerate_node.inference import accelerators, mock
from ipfs_accelerate_node.inference.inputs import check_dimensions, check_inputs
from ipfs_accelerate_node.inference.model import Accelerator, Embeddings, LoadedModel, ModelSpec
from ipfs_accelerate_node.inference.process import WorkerProcess
from ipfs_accelerate_node.inference.slot import Limits, Slot

log = logging.getLogger(__name__)

MOCK_ROOT = "mock:embedding"


class Registry:
    """Async context manager; leaving it ends every worker at once (let requests finish before).

    load_timeout_s: from the call to a model that answers. threads: of a worker's computation; None: one per core.
    prestart: a worker imports torch as soon as the registry is entered, so that the first load need not wait for it.
    silence_s: a worker that gives no sign of life for so long while it computes is ended. drain_timeout_s: how long
    ``unload`` lets queued requests finish. steady_s: a worker that ends sooner is in a series of crashes, and the
    pauses before its successors grow.
    """

    def __init__(
        self,
        *,
        load_timeout_s: float = 300.0,
        threads: int | None = None,
        prestart: bool = True,
        silence_s: float = 120.0,
        drain_timeout_s: float = 30.0,
        steady_s: float = 60.0,
    ) -> None:
        self._limits = Limits(load_timeout_s, silence_s, drain_timeout_s, steady_s)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._prestart = prestart
        self._spare: WorkerProcess | None = None
        self._slots: dict[str, Slot] = {}
        self._owners: dict[str, asyncio.Task[None]] = {}
        self._mocks: dict[str, LoadedModel] = {}
        self._tasks = asyncio.TaskGroup()
        self._accelerators: list[Accelerator] | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if self._prestart:
            self._spare = await WorkerProcess.start(threads=self._threads)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for slot in list(self._slots.values()):
                await slot.close(drain=False)
        finally:
            try:
                await self._tasks.__aexit__(kind, exc, traceback)
            finally:
                if self._spare is not None:
                    await self._spare.kill()
                    await self._spare.stop()

    async def load(
        self, spec: ModelSpec, *, device: str = "auto", precision: str = "f32", alias: str | None = None
    ) -> LoadedModel:
        """Load a model, or join its load, or find it loaded; returns when it answers.

        A caller that is cancelled leaves the load going. Raises DeviceUnavailable, ModelUnsupported, InvalidInput
        (precision), Conflict (alias belongs to another model), Unavailable (worker_crashed, load_timeout).
        """
        _check_device(device)
        if precision != "f32":
            raise InvalidInput(f"precision {precision[:40]!r} is not offered; f32 is", param="precision")
        names = tuple(dict.fromkeys((*((alias,) if alias else ()), *spec.names)))
        self._check_names(spec.root, names)
        if spec.mock:
            return self._load_mock(spec, names)
        slot = self._slots.get(spec.root)
        if slot is None or slot.state in ("draining", "absent"):
            await self._vacated(spec.root)
            slot = self._slots.get(spec.root) or self._occupy(spec, names, precision)
        slot.names = tuple(dict.fromkeys((*slot.names, *names)))
        return await slot.ready()

    def _load_mock(self, spec: ModelSpec, names: tuple[str, ...]) -> LoadedModel:
        if spec.root != MOCK_ROOT:
            raise ModelUnsupported(f"there is no {spec.root[:80]}; {MOCK_ROOT} is", code="task_unsupported")
        earlier = self._mocks.get(spec.root)
        known = earlier.names if earlier else ()
        self._mocks[spec.root] = mock.mock_model(spec, tuple(dict.fromkeys((*known, *names))))
        return self._mocks[spec.root]

    def _check_names(self, root: str, names: Sequence[str]) -> None:
        for name in names:
            other = self.find(name)
            if other is not None and other.root != root:
                raise Conflict(f"{name!r} is the name of {other.root}, which is loaded", name=name)

    async def _vacated(self, root: str) -> None:
        """Waits until an earlier load of the same root has gone."""
        if (owner := self._owners.get(root)) is not None:
            await asyncio.wait([owner])

    def _occupy(self, spec: ModelSpec, names: tuple[str, ...], precision: str) -> Slot:
        if spec.path is None:
            raise BadRequest(f"{spec.root} has no files to load")
        slot = Slot(spec, names=names, precision=precision, hire=self._hire, limits=self._limits)
        self._slots[spec.root] = slot
        self._owners[spec.root] = self._tasks.create_task(self._own(slot), name=f"own model {spec.root}")
        return slot

    async def _own(self, slot: Slot) -> None:
        try:
            await slot.run()
        finally:
            del self._slots[slot.spec.root], self._owners[slot.spec.root]

    async def _hire(self) -> WorkerProcess:
        """The spare worker if there is one, else a new one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.alive:
                return spare
            await spare.stop()
        try:
            return await WorkerProcess.start(threads=self._threads)
        except OSError as exc:
            raise Unavailable(f"no process for the model: {exc.strerror}", retry_after_s=5.0) from exc

    async def unload(self, name: str) -> None:
        """Finish what is queued, then end the model's process, which gives its memory back. Raises NotFound."""
        found = self._found(name)
        if found.root in self._mocks:
            del self._mocks[found.root]
            return
        slot, owner = self._slots[found.root], self._owners[found.root]
        await slot.close(drain=True)
        done, _ = await asyncio.wait([owner], timeout=self._limits.drain_timeout_s)
        if not done:
            await slot.close(drain=False)
            await asyncio.wait([owner])
        log.info("unload.done root=%s", found.root)

    def loaded(self) -> list[LoadedModel]:
        """Snapshots of every model that is loaded, loading or draining."""
        return [*(slot.snapshot() for slot in self._slots.values()), *self._mocks.values()]

    def find(self, name: str) -> LoadedModel | None:
        """By root, name or alias."""
        return next((m for m in self.loaded() if name == m.root or name in m.names), None)

    def _found(self, name: str) -> LoadedModel:
        found = self.find(name)
        if found is None:
            raise NotFound(f"{name[:80]!r} is not loaded", code="model_not_loaded")
        return found

    async def embed(
        self,
        model: LoadedModel | str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> Embeddings:
        """One vector per input, in their order; waits for a model that is still loading.

        dimensions: cut to so many, then normalised again. normalize: None is as the model's author wants it. truncate:
        False refuses inputs that are longer than the model takes.
        Raises InvalidInput with the index, PayloadTooLarge, NotFound, Overloaded, Unavailable (worker_crashed),
        InferenceFailed.
        """
        began = time.monotonic()
        found = self._found(model if isinstance(model, str) else model.root)
        if found.root in self._mocks:
            checked = check_inputs(inputs, vocab_size=0)
            check_dimensions(dimensions, width=found.width)
            seconds = time.monotonic() - began
            return mock.embed(found, checked, dimensions=dimensions, normalize=normalize, seconds=seconds)
        slot = self._slots[found.root]
        ready = found if found.state == "ready" else await slot.ready()
        checked = check_inputs(inputs, vocab_size=ready.vocab_size)
        check_dimensions(dimensions, width=ready.width)
        return await slot.embed(checked, dimensions=dimensions, normalize=normalize, truncate=truncate)

    async def accelerators(self) -> list[Accelerator]:
        """Every device that torch and OpenVINO report here; found once, then remembered. May take seconds."""
        async with self._asking:
            if self._accelerators is None:
                worker = await self._hire()
                try:
                    self._accelerators = await accelerators.survey(worker)
                    gpu = any(found.device.startswith("cuda") for found in self._accelerators)
                    if self._prestart and self._spare is None and not self._slots and worker.alive and not gpu:
                        self._spare = worker  # as it was (with a GPU it holds memory there): the spare again
                finally:
                    if self._spare is not worker:
                        await worker.stop()
            return list(self._accelerators)


def _check_device(device: str) -> None:
    if device in ("auto", "cpu"):
        return
    kind = device.partition(":")[0]
    if kind in ("cuda", "openvino"):
        reason = "this version runs models on the CPU with torch only"
    else:
        reason = "no such device; known are auto and cpu"
    raise DeviceUnavailable(f"device {device[:40]!r} is not available: {reason}", device=device[:40])
