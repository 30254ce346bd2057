"""Workloads beside requests: bringing a model into memory, and what a fetch of it took."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from ipfs_accelerate_node.benchmarks.machine_state import MachineState, Watch
from ipfs_accelerate_node.benchmarks.measure import Measured
from ipfs_accelerate_node.benchmarks.progress import Count, untold
from ipfs_accelerate_node.benchmarks.trial import peak_bytes
from ipfs_accelerate_node.benchmarks.workload import Workload, refuse_mock
from ipfs_accelerate_node.errors import BadRequest, Conflict, NodeError
from ipfs_accelerate_node.fetch.jobs import Receipt
from ipfs_accelerate_node.inference.model import LoadedModel
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.inference.serving import Serving

_LOOK_S = 0.002  # how often a load is asked for its phase


@asynccontextmanager
async def held(
    registry: Registry, serving: Serving, root: str, *, device: str, precision: str | None, task: str | None
) -> AsyncIterator[LoadedModel]:
    """The model loaded like that; afterwards it is as loaded as it was before. Raises what a load raises."""
    if registry.find_like(root, task=task, device=device, precision=precision) is not None:
        yield await serving.load(root, device=device, precision=precision, task=task)
        return
    alias = f"bench-{secrets.token_hex(6)}"
    try:
        yield await serving.load(root, device=device, precision=precision, task=task, alias=alias)
    finally:
        if registry.find(alias) is not None:
            await serving.unload(alias)


async def measure_loads(
    found: Workload,
    registry: Registry,
    serving: Serving,
    root: str,
    *,
    device: str,
    precision: str | None,
    task: str | None,
    tell: Count = untold,
) -> Measured:
    """Loads the model again and again. phases_ns: by what the worker said it was at, to about 2 ms.

    Raises Conflict (loaded_already): what somebody uses is not unloaded to be measured. And what a load raises.
    """
    if registry.find_like(root, task=task, device=device, precision=precision) is not None:
        raise Conflict("it is loaded already; unload it to measure how it loads", code="loaded_already")

    async def load(alias: str) -> LoadedModel:
        return await serving.load(root, device=device, precision=precision, task=task, alias=alias)

    for number in range(found.warmup):
        tell("warm-up", number, found.warmup)
        await _load_once(registry, serving, load)
    watch = Watch([], device)
    loads = []
    for number in range(found.repeats):
        tell("measuring", number, found.repeats)
        loads.append(await _load_once(registry, serving, load))
    names = sorted({name for one in loads for name in one.phases_ns})
    return Measured(
        samples_ns=tuple(one.taken_ns for one in loads),
        work=(1,) * len(loads),
        unit="loads",
        # workers that came and went are not to be told from other processes
        state=replace(watch.end(), others=None),
        model=loads[-1].model,
        phases_ns={name: tuple(one.phases_ns.get(name, 0) for one in loads) for name in names},
        peak_bytes=max(one.peak_bytes for one in loads) or None,
    )


@dataclass(frozen=True, slots=True)
class _Load:
    model: LoadedModel
    taken_ns: int
    phases_ns: dict[str, int]
    peak_bytes: int


async def _load_once(registry: Registry, serving: Serving, load: Callable[[str], Awaitable[LoadedModel]]) -> _Load:
    """One load from nothing, and away with it again."""
    alias = f"bench-{secrets.token_hex(6)}"
    phases_ns: dict[str, int] = {}
    began = last = time.perf_counter_ns()
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_outcome(load(alias)), name=f"load {alias}")
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK_S)
                now = time.perf_counter_ns()
                if (seen := registry.find(alias)) is not None and seen.state != "ready":
                    phases_ns[seen.state] = phases_ns.get(seen.state, 0) + now - last
                last = now
        model, ended = task.result()
        if isinstance(model, NodeError):
            raise model
        refuse_mock(model)
        peak = await asyncio.to_thread(peak_bytes, model.pid)
        return _Load(model, ended - began, phases_ns, peak or 0)
    finally:
        if registry.find(alias) is not None:
            await serving.unload(alias)


async def _outcome(load: Awaitable[LoadedModel]) -> tuple[LoadedModel | NodeError, int]:
    """What came of a load, and when: its error is an answer, not the end of who watches it."""
    try:
        return await load, time.perf_counter_ns()
    except NodeError as exc:
        return exc, time.perf_counter_ns()


def fetched(receipt: Receipt | None, root: str) -> Measured:
    """What the last fetch of a model took, by its receipt. Raises BadRequest (nothing_fetched): there is none in this
    run of the daemon, or all its bytes were here."""
    if receipt is None or receipt.root != root or receipt.bytes_fetched <= 0 or receipt.seconds <= 0:
        raise BadRequest(f"{root} was not fetched since the daemon was started", code="nothing_fetched")
    load = os.getloadavg()[0]
    return Measured(
        samples_ns=(round(receipt.seconds * 1e9),),
        work=(receipt.bytes_fetched,),
        unit="bytes",
        state=MachineState(cores=os.cpu_count() or 1, load_before=load, load_during=load),
        model=_unloaded(root),
        further={
            "sources": len(receipt.sources),
            "requests": sum(share.requests for share in receipt.sources),
            "rejected": sum(share.rejected for share in receipt.sources),
            "copied_bytes": receipt.bytes_copied,
        },
    )


def _unloaded(root: str) -> LoadedModel:
    """A fetch needs no device: the record says where its bytes went through."""
    return LoadedModel(
        id=root, root=root, names=(), device="network", engine="torch", precision="bytes", implementation="REAL",
        source="cid", task="fetch", width=0, max_tokens=0, state="absent", load_s=0.0, pid=None, versions={},
        memory_bytes=0,
    )  # fmt: skip
