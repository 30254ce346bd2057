"""Which models are loaded, under which names; the node's only door to inference."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import BadRequest, Conflict, InvalidInput, ModelUnsupported, NotFound
from ipfs_accelerate_node.inference import devices, mock, wire
from ipfs_accelerate_node.inference.inputs import check_dimensions, check_inputs, check_items
from ipfs_accelerate_node.inference.jobs import Job
from ipfs_accelerate_node.inference.memory import available_bytes, proportional_bytes
from ipfs_accelerate_node.inference.model import (
    PRECISIONS,
    Accelerator,
    Embeddings,
    Ids,
    Inferred,
    Item,
    LoadedModel,
    ModelSpec,
    Options,
    Text,
    Vector,
)
from ipfs_accelerate_node.inference.placing import Placing, Wanted
from ipfs_accelerate_node.inference.slot import Limits, Slot

log = logging.getLogger(__name__)


class Registry:
    """Async context manager; leaving it ends every worker at once (let requests finish before).

    cache: folder for converted models and calibrations; None: OpenVINO is not used. load_timeout_s: from the call to a
    model that answers, conversion apart. threads: of a worker's computation; None: one per core. prestart: a worker
    imports torch as soon as the registry is entered, so that the first load need not wait for it. silence_s: a worker
    that gives no sign of life for so long while it computes is ended. drain_timeout_s: how long ``unload`` lets queued
    requests finish. steady_s: a worker that ends sooner is in a series of crashes, and the pauses before its successors
    grow. keep_alive_s: a model that was idle for so long is unloaded; infinite: never. budget_bytes: what all workers
    together may take, None: what the machine has. available: says how many bytes it has left. gone: called with a root
    when nothing holds it any more.
    """

    def __init__(
        self,
        *,
        cache: Path | None = None,
        load_timeout_s: float = 300.0,
        threads: int | None = None,
        prestart: bool = True,
        silence_s: float = 120.0,
        drain_timeout_s: float = 30.0,
        steady_s: float = 60.0,
        keep_alive_s: float = math.inf,
        budget_bytes: int | None = None,
        available: Callable[[], int] = available_bytes,
        gone: Callable[[str], None] = lambda root: None,
    ) -> None:
        self._limits = Limits(load_timeout_s, silence_s, drain_timeout_s, steady_s)
        self._prestart = prestart
        self._keep_alive_s = keep_alive_s
        self._budget_bytes = budget_bytes
        self._available = available
        self._gone = gone
        self._placing = Placing(
            threads=threads or len(os.sched_getaffinity(0)),
            cache=cache,
            load_timeout_s=load_timeout_s,
            make_room=self._make_room,
        )
        self._slots: dict[Slot, asyncio.Task[None]] = {}  # each with the task that owns it
        self._mocks: dict[str, LoadedModel] = {}
        self._tasks = asyncio.TaskGroup()
        self._room = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if self._prestart:
            await self._placing.prestart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for slot in list(self._slots):
                await slot.close(drain=False)
        finally:
            try:
                await self._tasks.__aexit__(kind, exc, traceback)
            finally:
                await self._placing.close()

    # -- loading

    async def load(
        self,
        spec: ModelSpec,
        *,
        device: str = "auto",
        precision: str | None = None,
        task: str | None = None,
        alias: str | None = None,
        keep_alive_s: float | None = None,
        pinned: bool | None = None,
        thorough: bool = False,
    ) -> LoadedModel:
        """Load a model, or join its load, or find it loaded; returns when it answers.

        thorough: an ``auto`` device is measured against the others first, which may take minutes; else what was
        measured before decides, or a fixed order. keep_alive_s, pinned: None leaves them as they are.
        A caller that is cancelled leaves the load going. Raises DeviceUnavailable, ModelUnsupported, InvalidInput
        (precision), Conflict (a name belongs to another model), Unavailable (worker_crashed, load_timeout).
        """
        wanted = Wanted(task or spec.task, devices.canonical(device), precision or "f32")
        if wanted.precision not in PRECISIONS:
            offered = ", ".join(PRECISIONS)
            raise InvalidInput(f"precision {wanted.precision[:40]!r} is not offered; {offered} are", param="precision")
        names = tuple(dict.fromkeys((*((alias,) if alias else ()), *spec.names)))
        self._check_names(spec.root, names)
        if spec.mock:
            return self._load_mock(spec, names)
        slot = await self._matching(spec.root, wanted)
        if slot is not None and thorough and wanted.device == "auto":
            slot = await self._unless_unmeasured(slot)
        if slot is None:
            await self._placing.check_device(wanted.device, wanted.precision)
            slot = await self._matching(spec.root, wanted) or self._occupy(spec, wanted, names, thorough=thorough)
        if alias is not None:
            self._call(slot, alias)
        slot.names = tuple(dict.fromkeys((*slot.names, *names)))
        slot.keep(keep_alive_s=keep_alive_s, pinned=pinned)
        return await slot.ready()

    async def _unless_unmeasured(self, slot: Slot) -> Slot | None:
        """A model that a first request put somewhere makes way for one that is put where it was measured to be fast;
        what is queued for it is computed before."""
        await slot.settled()
        if not slot.unmeasured or slot.state != "ready":
            return slot
        await self._end(slot)
        return None

    def _load_mock(self, spec: ModelSpec, names: tuple[str, ...]) -> LoadedModel:
        earlier = self._mocks.get(spec.root)
        known = earlier.names if earlier else ()
        self._mocks[spec.root] = mock.mock_model(spec, tuple(dict.fromkeys((*known, *names))))
        return self._mocks[spec.root]

    def _check_names(self, root: str, names: Sequence[str]) -> None:
        for name in names:
            other = self.find(name)
            if other is not None and other.root != root:
                raise Conflict(f"{name!r} is the name of {other.root}, which is loaded", name=name)

    def _call(self, slot: Slot, alias: str) -> None:
        """An alias means one loaded form of a model, also where there are several."""
        if other := next((o for o in self._slots if o.alias == alias and o is not slot), None):
            raise Conflict(f"{alias!r} is {other.spec.root} on {other.wanted.device}", name=alias)
        slot.alias = slot.alias or alias

    async def _matching(self, root: str, wanted: Wanted) -> Slot | None:
        """The slot that is what is wanted; waits for one on its way out to be gone, and for an undecided one."""
        while True:
            undecided: Slot | None = None
            for slot, owner in self._slots.items():
                if slot.spec.root != root:
                    continue
                match = slot.answers_to(wanted)
                if match and slot.state in ("draining", "absent"):
                    await asyncio.wait([owner])
                    break
                if match:
                    return slot
                undecided = undecided or (slot if match is None else None)
            else:
                if undecided is None:
                    return None
                await undecided.settled()
                if undecided.state == "absent" and undecided in self._slots:
                    await asyncio.wait([self._slots[undecided]])

    def _occupy(self, spec: ModelSpec, wanted: Wanted, names: tuple[str, ...], *, thorough: bool) -> Slot:
        if spec.path is None:
            raise BadRequest(f"{spec.root} has no files to load")
        slot = Slot(
            spec,
            wanted,
            names=names,
            place=partial(self._placing.place, thorough=thorough),
            limits=self._limits,
            keep_alive_s=self._keep_alive_s,
            pinned=False,
        )
        self._slots[slot] = self._tasks.create_task(self._own(slot), name=f"own model {spec.root}")
        return slot

    async def _own(self, slot: Slot) -> None:
        try:
            await slot.run()
        finally:
            del self._slots[slot]
            if not any(other.spec.root == slot.spec.root for other in self._slots):
                self._gone(slot.spec.root)

    async def _make_room(self, need_bytes: int, device: str) -> None:
        """Unload what was not used for longest, and is neither pinned nor at work, until so much is free."""
        async with self._room:
            while self._free_bytes() < need_bytes:
                host = not device.startswith("cuda")
                movable = [s for s in self._slots if s.idle and not s.pinned and s.on_host == host]
                if not movable:
                    return
                oldest = min(movable, key=lambda slot: slot.last_used)
                log.info("unload.for_room root=%s need_bytes=%d", oldest.spec.root, need_bytes)
                await self._end(oldest)
                if need_bytes > 1 << 60:
                    return

    def _free_bytes(self) -> int:
        free = self._available()
        if self._budget_bytes is None:
            return free
        taken = sum(proportional_bytes(slot.pid) for slot in self._slots if slot.pid is not None)
        return min(free, self._budget_bytes - taken)

    # -- unloading and finding

    async def unload(self, name: str) -> None:
        """Finish what is queued, then end the processes of what the name means, which gives their memory back. An alias
        means one, a root or a name everything that is loaded of it. Raises NotFound."""
        if (mocked := self._mock(name)) is not None:
            del self._mocks[mocked.root]
            return
        named = self._named(name)
        if not named:
            raise _not_loaded(name)
        aliased = [slot for slot in named if slot.alias == name]
        await asyncio.gather(*(self._end(slot) for slot in aliased or named))

    async def _end(self, slot: Slot) -> None:
        owner = self._slots.get(slot)
        if owner is None:
            return
        await slot.close(drain=True)
        done, _ = await asyncio.wait([owner], timeout=self._limits.drain_timeout_s)
        if not done:
            await slot.close(drain=False)
            await asyncio.wait([owner])
        log.info("unload.done root=%s", slot.spec.root)

    def loaded(self) -> list[LoadedModel]:
        """Snapshots of every model that is loaded, on its way, or draining."""
        return [*(slot.snapshot() for slot in self._slots), *self._mocks.values()]

    def find(self, name: str, *, task: str | None = None) -> LoadedModel | None:
        """By root, name or alias; of several, the one that is ready, then the one last used. task: loaded for it."""
        if (mocked := self._mock(name)) is not None:
            return mocked if task in (None, mocked.task) else None
        named = self._named(name, task=task)
        return named[0].snapshot() if named else None

    def find_like(self, root: str, *, task: str | None, device: str, precision: str | None) -> LoadedModel | None:
        """What a request for this task, device (``auto``: any) and precision (None: any) can use as it is."""
        named = self._named(root, task=task)
        fits = [
            found
            for found in (slot.snapshot() for slot in named)
            if device in ("auto", found.device) and precision in (None, found.precision)
        ]
        return fits[0] if fits else None

    def _mock(self, name: str) -> LoadedModel | None:
        return next((m for m in self._mocks.values() if name == m.root or name in m.names), None)

    def _named(self, name: str, *, task: str | None = None) -> list[Slot]:
        found = [slot for slot in self._slots if name in (slot.spec.root, slot.alias, *slot.names) and slot.does(task)]
        return sorted(found, key=lambda s: (s.alias != name, s.state != "ready", -s.last_used))

    def _slot(self, model: LoadedModel | str, task: str | None = None) -> Slot:
        """Raises NotFound; ModelUnsupported when it is loaded for other tasks only."""
        if isinstance(model, LoadedModel):
            exact = [s for s in self._named(model.root) if s.is_like(model)]
            if exact and (task is None or exact[0].does(task)):
                return exact[0]
        name = model if isinstance(model, str) else model.root
        named = self._named(name, task=task)
        if named:
            return named[0]
        if others := self._named(name):
            loaded = others[0].snapshot().task
            raise ModelUnsupported(f"{name[:80]} is loaded for {loaded}, not for {task}", code="task_unsupported")
        raise _not_loaded(name)

    # -- inference

    async def infer(
        self,
        model: LoadedModel | str,
        items: Sequence[Item],
        options: Options | None = None,
        *,
        task: str | None = None,
    ) -> Inferred:
        """One output per item, in their order; waits for a model that is still loading.

        task: of several loaded forms of the model, the one for it. Raises InvalidInput with the index,
        PayloadTooLarge, NotFound, ModelUnsupported (task), Overloaded, Unavailable (worker_crashed), InferenceFailed.
        """
        began, options = time.monotonic(), options or Options()
        mocked = self._mock(model if isinstance(model, str) else model.root)
        if mocked is not None:
            if task not in (None, mocked.task):
                raise ModelUnsupported(f"{mocked.root} does {mocked.task}, not {task}", code="task_unsupported")
            check_items(items, options, mocked.task)
            check_dimensions(options.dimensions, width=mock.WIDTH)
            outputs = mock.infer(mocked.task, items, options)
            tokens = sum(output.tokens_in for output in outputs)
            return Inferred(tuple(outputs), mocked, tokens, time.monotonic() - began)
        slot = self._slot(model, task)
        ready = slot.snapshot() if slot.state == "ready" else await slot.ready()
        check_items(items, options, ready.task)
        if ready.width:
            check_dimensions(options.dimensions, width=ready.width)
        job = Job.infer(items, options)
        reply, payload = await slot.ask(job)
        assert isinstance(reply, wire.Outputs)
        outputs = wire.unpack_outputs(reply, payload)
        tokens = sum(output.tokens_in for output in outputs)
        return Inferred(tuple(outputs), slot.snapshot(), tokens, time.monotonic() - job.since)

    async def embed(
        self,
        model: LoadedModel | str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
    ) -> Embeddings:
        """One vector per input, in their order. dimensions, normalize, truncate: as in Options. Raises as ``infer``."""
        vocab_size = 0
        if self._mock(model if isinstance(model, str) else model.root) is None:
            slot = self._slot(model, "embedding")
            vocab_size = (slot.snapshot() if slot.state == "ready" else await slot.ready()).vocab_size
        checked = check_inputs(inputs, vocab_size=vocab_size)
        items: list[Item] = [Text(i) if isinstance(i, str) else Ids(tuple(i)) for i in checked]
        options = Options(dimensions=dimensions, normalize=normalize, truncate=truncate)
        done = await self.infer(model, items, options, task="embedding")
        vectors = [output.values for output in done.outputs if isinstance(output, Vector)]
        return Embeddings(
            vectors=np.stack(vectors),
            prompt_tokens=done.tokens,
            model=done.model,
            seconds=done.seconds,
            truncated=sum(output.truncated for output in done.outputs),
        )

    async def primary(self, model: LoadedModel | str, item: Item) -> NDArray[np.float32]:
        """What engines are compared by: the pooled vector, or logits. Raises as ``infer``; not for mocks."""
        reply, payload = await self._slot(model).ask(Job.primary(item))
        assert isinstance(reply, wire.Array)
        return np.frombuffer(payload, dtype="<f4").reshape(reply.shape)

    async def examples(self, model: LoadedModel | str, count: int, *, first: int = 0) -> list[Item]:
        """Sample inputs of the task that it is loaded for; the same for the same numbers everywhere. Not for mocks."""
        reply, _ = await self._slot(model).ask(Job.examples(first, count))
        assert isinstance(reply, wire.Samples)
        return list(reply.items)

    async def imports(self, model: LoadedModel | str) -> frozenset[str]:
        """Top-level modules that its worker has imported: the proof that an OpenVINO worker has no torch."""
        reply, _ = await self._slot(model).ask(Job.imports())
        assert isinstance(reply, wire.Imported)
        return frozenset(reply.modules)

    def waiting(self, model: LoadedModel | str) -> int:
        """Requests that are queued or computed. Raises NotFound."""
        return self._slot(model).waiting

    async def accelerators(self) -> list[Accelerator]:
        """Every device that torch and OpenVINO report here; found once, then remembered. May take seconds."""
        found = await self._placing.devices("torch", keep=self._prestart and not self._slots)
        return found + await self._placing.devices("openvino", keep=False)


def _not_loaded(name: str) -> NotFound:
    return NotFound(f"{name[:80]!r} is not loaded", code="model_not_loaded")
