"""Which models are loaded, under which names; the node's only door to inference."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import Conflict, InvalidInput, ModelUnsupported, NotFound
from ipfs_accelerate_node.inference import devices, frames, mock, wire
from ipfs_accelerate_node.inference.inputs import check_dimensions, check_inputs, check_items
from ipfs_accelerate_node.inference.jobs import Job
from ipfs_accelerate_node.inference.memory import available_bytes
from ipfs_accelerate_node.inference.model import (
    PRECISIONS,
    Accelerator,
    Embeddings,
    Generated,
    Ids,
    Inferred,
    Item,
    LoadedModel,
    ModelSpec,
    ModelStats,
    Options,
    Text,
    Token,
    Vector,
)
from ipfs_accelerate_node.inference.placing import Placing
from ipfs_accelerate_node.inference.slot import Limits, Slot
from ipfs_accelerate_node.inference.slots import Slots
from ipfs_accelerate_node.inference.wanted import AUTO, Wanted

log = logging.getLogger(__name__)

STREAMED = ("text-generation",)  # tasks that tell their answers as they are written


class Registry:
    """Async context manager; leaving it ends every worker at once (let requests finish before).

    cache: folder for converted models and calibrations; None: OpenVINO is not used. load_timeout_s: from the call to a
    model that answers, conversion apart. threads: of a worker's computation; None: one per core. prestart: a worker
    imports torch as soon as the registry is entered, so that the first load need not wait for it. silence_s: a worker
    that gives no sign of life for so long while it computes is ended. drain_timeout_s: how long ``unload`` lets queued
    requests finish. steady_s: a worker that ends sooner is in a series of crashes, and the pauses before its successors
    grow. keep_alive_s: a model that was idle for so long is unloaded; infinite: never. budget_bytes: what all workers
    together may take, None: what the machine has. available: says how many bytes it has left. gone: called with a root
    when nothing holds it any more. queue_wait_s: a request that would wait longer than that for its model is refused.
    share_identical: identical requests that are computed or wait at the same time share one computation. precision: of
    models that are loaded without naming one.
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
        queue_wait_s: float = 2.0,
        share_identical: bool = True,
        precision: str = AUTO,
    ) -> None:
        self.precision = precision
        self._prestart = prestart
        self._slots = Slots(
            Limits(load_timeout_s, silence_s, drain_timeout_s, steady_s, queue_wait_s, share_identical),
            keep_alive_s=keep_alive_s,
            budget_bytes=budget_bytes,
            available=available,
            gone=gone,
        )
        self._placing = Placing(
            threads=threads or len(os.sched_getaffinity(0)),
            cache=cache,
            load_timeout_s=load_timeout_s,
            make_room=self._slots.make_room,
        )
        self._mocks: dict[str, LoadedModel] = {}

    async def __aenter__(self) -> Self:
        await self._slots.__aenter__()
        if self._prestart:
            await self._placing.prestart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._slots.__aexit__(kind, exc, traceback)
        finally:
            await self._placing.close()

    # -- loading

    async def load(
        self,
        spec: ModelSpec,
        *,
        device: str = AUTO,
        precision: str | None = None,
        task: str | None = None,
        alias: str | None = None,
        keep_alive_s: float | None = None,
        pinned: bool | None = None,
        thorough: bool = False,
    ) -> LoadedModel:
        """Load a model, or join its load, or find it loaded; returns when it answers.

        thorough: an ``auto`` device is measured against the others, and an ``auto`` precision compared with f32 first,
        which may take minutes; else what is known decides, or a fixed order, and f32. What is loaded keeps its
        precision whoever loads it again; an ``auto`` one is content with it. keep_alive_s, pinned: None leaves them as
        they are.
        A caller that is cancelled leaves the load going. Raises DeviceUnavailable, ModelUnsupported, InvalidInput
        (precision), Conflict (a name belongs to another model), Unavailable (worker_crashed, load_timeout).
        """
        wanted = Wanted(task or spec.task, devices.canonical(device), precision or self.precision)
        if wanted.precision not in (AUTO, *PRECISIONS):
            offered = ", ".join((AUTO, *PRECISIONS))
            raise InvalidInput(f"precision {wanted.precision[:40]!r} is not offered; {offered} are", param="precision")
        names = tuple(dict.fromkeys((*((alias,) if alias else ()), *spec.names)))
        self._check_names(spec.root, names)
        if spec.mock:
            return self._load_mock(spec, names)
        slot = await self._slots.matching(spec.root, wanted)
        if slot is not None and thorough and wanted.device == AUTO and await self._made_way(slot):
            wanted, slot = replace(wanted, precision=slot.snapshot().precision), None
        if slot is None:
            await self._placing.check_device(wanted.device, None if wanted.precision == AUTO else wanted.precision)
            slot = await self._slots.matching(spec.root, wanted) or self._slots.occupy(
                spec, wanted, names, self._placing, thorough=thorough
            )
        if alias is not None:
            self._slots.call(slot, alias)
        slot.names = tuple(dict.fromkeys((*slot.names, *names)))
        slot.keep(keep_alive_s=keep_alive_s, pinned=pinned)
        return await slot.ready()

    async def _made_way(self, slot: Slot) -> bool:
        """A model that a first request put somewhere makes way for one that is put where it was measured to be fast;
        what is queued for it is computed before. Whoever was answered by it goes on to be answered in its precision."""
        await slot.settled()
        if not slot.unmeasured or slot.state != "ready":
            return False
        await self._slots.end(slot)
        return True

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

    # -- unloading and finding

    async def unload(self, name: str) -> None:
        """Finish what is queued, then end the processes of what the name means, which gives their memory back. An alias
        means one, a root or a name everything that is loaded of it. Raises NotFound."""
        if (mocked := self._mock(name)) is not None:
            del self._mocks[mocked.root]
            return
        named = self._slots.named(name)
        if not named:
            raise _not_loaded(name)
        aliased = [slot for slot in named if slot.alias == name]
        await asyncio.gather(*(self._slots.end(slot) for slot in aliased or named))

    def loaded(self) -> list[LoadedModel]:
        """Snapshots of every model that is loaded, on its way, or draining."""
        return [*(slot.snapshot() for slot in self._slots), *self._mocks.values()]

    def find(self, name: str, *, task: str | None = None) -> LoadedModel | None:
        """By root, name or alias; of several, the one that is ready, then the one last used. task: loaded for it."""
        if (mocked := self._mock(name)) is not None:
            return mocked if task in (None, mocked.task) else None
        named = self._slots.named(name, task=task)
        return named[0].snapshot() if named else None

    def find_like(self, root: str, *, task: str | None, device: str, precision: str | None) -> LoadedModel | None:
        """What a request for this task, device and precision (None) can use as it is; ``auto``: any."""
        named = self._slots.named(root, task=task)
        fits = [
            found
            for found in (slot.snapshot() for slot in named)
            if device in (AUTO, found.device) and precision in (None, AUTO, found.precision)
        ]
        return fits[0] if fits else None

    def _mock(self, name: str) -> LoadedModel | None:
        return next((m for m in self._mocks.values() if name == m.root or name in m.names), None)

    def _slot(self, model: LoadedModel | str, task: str | None = None) -> Slot:
        """Raises NotFound; ModelUnsupported when it is loaded for other tasks only."""
        if isinstance(model, LoadedModel):
            exact = [s for s in self._slots.named(model.root) if s.is_like(model)]
            if exact and (task is None or exact[0].does(task)):
                return exact[0]
        name = model if isinstance(model, str) else model.root
        named = self._slots.named(name, task=task)
        if named:
            return named[0]
        if others := self._slots.named(name):
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
        deadline_s: float | None = None,
    ) -> Inferred:
        """One output per item, in their order; waits for a model that is still loading.

        task: of several loaded forms of the model, the one for it. deadline_s: seconds from now after which nobody
        wants the answer. Raises InvalidInput with the index, PayloadTooLarge, NotFound, ModelUnsupported
        (task), Overloaded, Unavailable (worker_crashed, deadline_exceeded), InferenceFailed.
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
        left_s = None if deadline_s is None else deadline_s - (time.monotonic() - began)
        reply, payload = await slot.ask(Job.infer(items, options, deadline_s=left_s))
        assert isinstance(reply, wire.Outputs)
        outputs = frames.unpack_outputs(reply, payload)
        tokens = sum(output.tokens_in for output in outputs)
        return Inferred(tuple(outputs), slot.snapshot(), tokens, time.monotonic() - began, reply.timing)

    async def stream(
        self,
        model: LoadedModel,
        items: Sequence[Item],
        options: Options,
        *,
        task: str | None = None,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[wire.Delta, None]:
        """What is added to the answers of a model that writes, as it is written; of each the last one with ``finish``.
        A model that answers as a whole does so here, too. Leaving it ends the writing. Raises as ``infer``."""
        if model.task not in STREAMED or self._mock(model.root) is not None:
            done = await self.infer(model, items, options, task=task, deadline_s=deadline_s)
            for index, output in enumerate(done.outputs):
                if isinstance(output, Generated):
                    ended = output.finish, output.tokens_in, len(output.ids)
                    yield wire.Delta(0, index, output.text, output.ids, *ended)
            return
        slot = self._slot(model, task)
        ready = slot.snapshot() if slot.state == "ready" else await slot.ready()
        check_items(items, options, ready.task)
        job = Job.infer(items, options, deadline_s=deadline_s, stream=True)
        async with aclosing(slot.stream(job)) as deltas:
            async for delta in deltas:
                yield delta

    async def embed(
        self,
        model: LoadedModel | str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """One vector per input, in their order. dimensions, normalize, truncate: as in Options. Raises as ``infer``."""
        vocab_size = 0
        if self._mock(model if isinstance(model, str) else model.root) is None:
            slot = self._slot(model, "embedding")
            vocab_size = (slot.snapshot() if slot.state == "ready" else await slot.ready()).vocab_size
        checked = check_inputs(inputs, vocab_size=vocab_size)
        items: list[Item] = [Text(i) if isinstance(i, str) else Ids(tuple(i)) for i in checked]
        options = Options(dimensions=dimensions, normalize=normalize, truncate=truncate)
        done = await self.infer(model, items, options, task="embedding", deadline_s=deadline_s)
        vectors = [output.values for output in done.outputs if isinstance(output, Vector)]
        return Embeddings(
            vectors=np.stack(vectors),
            prompt_tokens=done.tokens,
            model=done.model,
            seconds=done.seconds,
            truncated=sum(output.truncated for output in done.outputs),
            timing=done.timing,
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

    async def tokenize(self, model: LoadedModel | str, texts: Sequence[str], *, special: bool) -> list[list[Token]]:
        """A row for each text. Raises ModelUnsupported(task_unsupported): it has no tokenizer; not for mocks."""
        self._refuse_mock(model)
        check_items([Text(text) for text in texts], Options(), "embedding")
        reply, _ = await self._slot(model).ask(Job.tokenize(texts, special=special))
        assert isinstance(reply, wire.Tokenized)
        return reply.rows

    async def decode(self, model: LoadedModel | str, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """A text for each row of token ids. Raises as ``tokenize``, and InvalidInput for an id that is none."""
        self._refuse_mock(model)
        check_items([Ids(tuple(row)) for row in rows], Options(), "embedding")
        reply, _ = await self._slot(model).ask(Job.decode(rows, skip_special=skip_special))
        assert isinstance(reply, wire.Decoded)
        return reply.texts

    def _refuse_mock(self, model: LoadedModel | str) -> None:
        if (mocked := self._mock(model if isinstance(model, str) else model.root)) is not None:
            raise ModelUnsupported(f"{mocked.root} has no tokenizer", code="task_unsupported")

    def waiting(self, model: LoadedModel | str) -> int:
        """Requests that are queued or computed. Raises NotFound."""
        return self._slot(model).waiting

    def stats(self) -> list[ModelStats]:
        """Of every loaded model but the mocks: what waits for it, and what it has done."""
        return [slot.stats() for slot in self._slots]

    @property
    def working(self) -> bool:
        """Whether any model computes now."""
        return any(slot.waiting for slot in self._slots)

    async def accelerators(self) -> list[Accelerator]:
        """Every device that torch and OpenVINO report here; found once, then remembered. May take seconds."""
        found = await self._placing.devices("torch", keep=self._prestart and not list(self._slots))
        return found + await self._placing.devices("openvino", keep=False)


def _not_loaded(name: str) -> NotFound:
    return NotFound(f"{name[:80]!r} is not loaded", code="model_not_loaded")
