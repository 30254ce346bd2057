"""Stored models, and mocks, by reference: loaded on request or on first use, held in the store as long as loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.reference import HubRef, MockRef, parse_reference
from ipfs_accelerate_node.content.selection import ALL_FILES, Choice
from ipfs_accelerate_node.errors import (
    DeviceUnavailable,
    Loading,
    ModelUnsupported,
    NodeError,
    NotFound,
    Overloaded,
    SourceUnavailable,
    Unavailable,
)
from ipfs_accelerate_node.inference.model import Embeddings, Inferred, Item, LoadedModel, ModelSpec, Options
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.wanted import Wanted
from ipfs_accelerate_node.inference.wire import Delta
from ipfs_accelerate_node.store import Store, StoredModel

log = logging.getLogger(__name__)

DEFAULTS = Options()
LOAD_WAIT_S = 20.0  # a request waits so long for a model that is being loaded, then is told to come back


class Serving:
    """find: the stored model that a reference means. bring: fetches what a reference to the Hub means, for who asks to
    load it, and returns its root. group: where loads go on when their first caller has gone. allow_mock: a mock of the
    task stands in, marked as one, where the model cannot be had."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        find: Callable[[str], StoredModel],
        group: asyncio.TaskGroup,
        allow_mock: bool,
        bring: Callable[[str, Choice], Awaitable[str]] | None = None,
    ) -> None:
        self._bring = bring
        self._store = store
        self._registry = registry
        self._find = find
        self._group = group
        self._allow_mock = allow_mock
        self._held: dict[str, AbstractContextManager[StoredModel]] = {}
        self._loads: dict[tuple[str, Wanted], asyncio.Task[LoadedModel | NodeError]] = {}

    def close(self) -> None:
        for task in self._loads.values():
            task.cancel()

    async def load(
        self,
        ref: str,
        *,
        device: str = "auto",
        precision: str | None = None,
        task: str | None = None,
        alias: str | None = None,
        keep_alive_s: float | None = None,
        pinned: bool | None = None,
        thorough: bool = False,
        allow_mock: bool = False,
        fetch: bool = False,
        choice: Choice = ALL_FILES,
    ) -> LoadedModel:
        """A stored model, or a mock that is named as one; joins a load of the same that is under way. fetch: ``hf:…``
        that is not here is pinned first, as far as choice says or, without one, as a loader needs it. See
        ``Registry.load``; raises NotFound beside what that raises."""
        try:
            spec = await self._spec(ref, task, choice if fetch else None)
        except NodeError as exc:
            return await self._mocked(exc, task, allow_mock)
        self._hold(spec)
        try:
            loaded = await self._registry.load(
                spec,
                device=device,
                precision=precision,
                task=task,
                alias=alias,
                keep_alive_s=keep_alive_s,
                pinned=pinned,
                thorough=thorough,
            )
        except NodeError as exc:
            if self._registry.find(spec.root) is None:
                self.release(spec.root)
            return await self._mocked(exc, task, allow_mock)
        self._hold(spec)  # again: an earlier load of it may have gone, and let go, in between
        return loaded

    async def _spec(self, ref: str, task: str | None, fetched: Choice | None) -> ModelSpec:
        """fetched: what may be fetched of it; None for nothing."""
        reference = parse_reference(ref)
        if isinstance(reference, MockRef):
            if task not in (None, reference.task):
                raise ModelUnsupported(f"{ref} does {reference.task}, not {task}", code="task_unsupported")
            return ModelSpec(root=ref, path=None, source="mock", task=reference.task, mock=True)
        try:
            model = await asyncio.to_thread(self._find, ref)
        except NotFound as exc:
            if not isinstance(reference, HubRef) or not ref.startswith("hf:"):
                raise
            if fetched is None or self._bring is None:
                reason = "only `pin` and `load` fetch"
                exc.detail["chain"] = [
                    {"step": "here", "outcome": "absent", "reason": str(exc)},
                    *({"step": step, "outcome": "skipped", "reason": reason} for step in ("map", "hub")),
                ]
                raise
            model = await asyncio.to_thread(self._find, await self._bring(ref, fetched))
        else:
            if fetched is not None and isinstance(reference, HubRef):
                model = await self._completed(model, fetched)
        return ModelSpec(str(model.root), model.path, model.names, source=model.provenance.kind, task=task)

    async def _completed(self, model: StoredModel, fetched: Choice) -> StoredModel:
        """A model of the Hub that is here in part, with what its loader needs of the same commit. Where the Hub cannot
        be asked, what is here has to do."""
        came = model.provenance
        in_part = not model.complete or came.selection is not None
        if self._bring is None or not in_part or came.hub_repo is None or came.hub_commit is None:
            return model
        try:
            root = await self._bring(f"hf:{came.hub_repo}@{came.hub_commit}", fetched)
        except SourceUnavailable as exc:
            log.info("load.in_part root=%s code=%s", model.root, exc.code)
            return model
        return await asyncio.to_thread(self._find, root)

    async def _mocked(self, error: NodeError, task: str | None, allowed: bool) -> LoadedModel:
        """The mock of the task, where that was allowed and the model itself cannot be had; a named device, or too much
        work, is no reason for one. Raises the error otherwise."""
        final = isinstance(error, DeviceUnavailable | Overloaded | Loading)
        lacking = isinstance(error, NotFound | ModelUnsupported | Unavailable) and not final
        if not (allowed or self._allow_mock) or not lacking or task is None:
            chain = error.detail.get("chain")
            if isinstance(chain, list) and not any(step["step"] == "mock" for step in chain):
                reason = "not allowed (--allow-mock)" if not (allowed or self._allow_mock) else "no task was named"
                chain.append({"step": "mock", "outcome": "skipped", "reason": reason})
            raise error
        log.warning("mock.stands_in task=%s reason=%s", task, error)
        spec = ModelSpec(root=f"mock:{task}", path=None, source="mock", task=task, mock=True)
        mock = await self._registry.load(spec)
        return replace(mock, notes=(*mock.notes, f"it stands in for a model that cannot be had: {error}"))

    def _hold(self, spec: ModelSpec) -> None:
        """A loaded model's files are in use: never evicted, never removed."""
        if not spec.mock and spec.root not in self._held:
            held = self._store.use(Cid.parse(spec.root))
            held.__enter__()
            self._held[spec.root] = held

    def release(self, root: str) -> None:
        """Called when nothing of a model is loaded any more."""
        if (held := self._held.pop(root, None)) is not None:
            held.__exit__(None, None, None)

    async def unload(self, name: str) -> None:
        """Ends the model's workers. Raises NotFound when it is not loaded."""
        known = name if self._registry.find(name) is not None else await asyncio.to_thread(self._root_of, name)
        if self._registry.find(known) is None:
            raise NotFound(f"{name[:200]} is not loaded", code="model_not_loaded")
        await self._registry.unload(known)

    def _root_of(self, name: str) -> str:
        try:
            return str(self._find(name).root)
        except NodeError:
            return name

    async def infer(
        self,
        ref: str,
        items: Sequence[Item],
        options: Options = DEFAULTS,
        *,
        task: str | None = None,
        device: str = "auto",
        precision: str | None = None,
        allow_mock: bool = False,
        deadline_s: float | None = None,
    ) -> Inferred:
        """One output per item, same order. deadline_s: seconds from now after which nobody wants the answer.
        Loads a stored model on first use; Loading when that takes longer than LOAD_WAIT_S (it goes on loading)."""
        try:
            loaded = await self._loaded(ref, task, device, precision)
        except NodeError as exc:
            loaded = await self._mocked(exc, task, allow_mock)
        done = await self._registry.infer(loaded, items, options, task=task, deadline_s=deadline_s)
        return replace(done, model=replace(done.model, notes=loaded.notes)) if loaded.implementation == "MOCK" else done

    async def stream(
        self,
        ref: str,
        items: Sequence[Item],
        options: Options = DEFAULTS,
        *,
        task: str | None = None,
        device: str = "auto",
        precision: str | None = None,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """What is added to each answer as it is written; see ``Registry.stream``. Raises as ``infer``."""
        try:
            loaded = await self._loaded(ref, task, device, precision)
        except NodeError as exc:
            loaded = await self._mocked(exc, task, allowed=False)
        written = self._registry.stream(loaded, items, options, task=task, deadline_s=deadline_s)
        async with aclosing(written) as deltas:
            async for delta in deltas:
                yield delta

    async def embed(
        self,
        ref: str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = True,
        deadline_s: float | None = None,
    ) -> Embeddings:
        """The same for text embeddings."""
        try:
            loaded = await self._loaded(ref, "embedding", "auto", None)
        except NodeError as exc:
            loaded = await self._mocked(exc, "embedding", allowed=False)
        return await self._registry.embed(
            loaded, inputs, dimensions=dimensions, normalize=normalize, truncate=truncate, deadline_s=deadline_s
        )

    async def _loaded(self, ref: str, task: str | None, device: str, precision: str | None) -> LoadedModel:
        """What is loaded and fits; else it is loaded now."""
        like = self._registry.find_like
        found = like(ref, task=task, device=device, precision=precision)
        if found is None and not ref.startswith("mock:"):
            root = await asyncio.to_thread(self._root_of, ref)
            found = like(root, task=task, device=device, precision=precision)
        if found is not None and found.state == "ready":
            return found
        return await self._load_for(ref, Wanted(task, device, precision or self._registry.precision))

    async def _load_for(self, ref: str, wanted: Wanted) -> LoadedModel:
        task = self._loads.get((ref, wanted))
        if task is None:
            task = self._group.create_task(self._load_quietly(ref, wanted), name=f"load {ref}")
            self._loads[ref, wanted] = task
            task.add_done_callback(lambda _: self._loads.pop((ref, wanted), None))
        await asyncio.wait({task}, timeout=LOAD_WAIT_S)
        if not task.done():
            raise Loading(f"{ref} is being loaded", retry_after_s=LOAD_WAIT_S / 4)
        if isinstance(outcome := task.result(), NodeError):
            raise outcome
        return outcome

    async def _load_quietly(self, ref: str, wanted: Wanted) -> LoadedModel | NodeError:
        """A failed load is an answer to those who wait for it, not a fault of the node."""
        try:
            return await self.load(ref, device=wanted.device, precision=wanted.precision, task=wanted.task)
        except NodeError as exc:
            return exc
