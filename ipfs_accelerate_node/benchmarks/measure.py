"""Running a workload: raw times of whole requests, from the call to the answer, and what each of them did."""

from __future__ import annotations

import asyncio
import io
import time
import wave
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ipfs_accelerate_node.benchmarks.figures import FIRST_TOKEN
from ipfs_accelerate_node.benchmarks.machine_state import MachineState, Watch
from ipfs_accelerate_node.benchmarks.progress import Count, untold
from ipfs_accelerate_node.benchmarks.trial import peak_bytes
from ipfs_accelerate_node.benchmarks.workload import Workload, inputs, refuse_mock
from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.model import (
    Audio,
    Generated,
    Inferred,
    Item,
    LoadedModel,
    Options,
    Vector,
)

FEWEST = 3  # repeats, however slow the model is
PROMPTS = 8  # that are tried, for a generation that does not end before its length


class Door(Protocol):
    """The path of a request: `Serving.infer`."""

    async def infer(
        self,
        ref: str,
        items: Sequence[Item],
        options: Options = ...,
        *,
        task: str | None = None,
        device: str = "auto",
        precision: str | None = None,
    ) -> Inferred: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """samples_ns: one per repeat, in order. work: what each did, in unit. phases_ns: parts of each. tokens: real ones
    that went in, of one repeat; truncated: inputs that were cut. peak_bytes: the largest resident size of the worker so
    far. model: as the last reply named it. further: more parameters of what was done."""

    samples_ns: tuple[int, ...]
    work: tuple[int, ...]
    unit: str
    state: MachineState
    model: LoadedModel
    phases_ns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    peak_bytes: int | None = None
    further: dict[str, int] = field(default_factory=dict)


async def measure(
    found: Workload,
    model: LoadedModel,
    door: Door,
    examples: Callable[[int], Awaitable[list[Item]]],
    *,
    working: Callable[[], bool] = lambda: False,
    tell: Count = untold,
) -> Measured:
    """Runs a workload of requests (not ``load``, not ``fetch``) on what is loaded. working: whether anything is
    computed now; asked between our requests, so then it is somebody else's.

    The answers must be the model's: REAL, the same root, device, engine and precision, finite. Raises
    BadRequest(mock_not_measurable), InferenceFailed for an answer that is none, and what a request raises.
    """
    refuse_mock(model)
    asked = _Asked(found, model, door)
    items, attempt = await _prompt(found, model, examples, asked)
    for number in range(found.warmup):
        tell("warm-up", number, found.warmup)
        await asked(items)
    watch = Watch([model.pid], model.device)
    runs = await _repeat(found, items, asked, working, tell)
    state = replace(watch.end(), disturbed=sum(run.disturbed for run in runs))
    reply = runs[-1].reply
    if not all(run.work for run in runs):
        raise InferenceFailed(
            f"{model.root} on {model.device} did nothing for {found.name}, so its speed means nothing"
        )
    generates = found.kind == "tg"
    return Measured(
        samples_ns=tuple(run.taken_ns for run in runs),
        work=tuple(run.work for run in runs),
        unit=unit_of(found, reply),
        state=state,
        model=reply.model,
        phases_ns={FIRST_TOKEN: tuple(run.first_ns for run in runs)} if generates else {},
        tokens=reply.tokens,
        truncated=sum(output.truncated for output in reply.outputs),
        peak_bytes=await asyncio.to_thread(peak_bytes, reply.model.pid),
        further={"prompt": attempt} if generates else {},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Repeat:
    """first_ns: of a request for the first token alone, just before; 0 where nothing is generated."""

    reply: Inferred
    taken_ns: int
    work: int
    first_ns: int
    disturbed: bool


async def _repeat(
    found: Workload, items: Sequence[Item], asked: _Asked, working: Callable[[], bool], tell: Count
) -> list[_Repeat]:
    """Until there are as many as wanted, or the time is up."""
    runs: list[_Repeat] = []
    began = time.monotonic()
    while len(runs) < found.repeats and (len(runs) < FEWEST or time.monotonic() - began < found.budget_s):
        tell("measuring", len(runs), found.repeats)
        first_ns = (await asked(items, new_tokens=1))[1] if found.kind == "tg" else 0
        before = working()
        reply, taken_ns = await asked(items)
        runs.append(_Repeat(reply, taken_ns, done(found, items, reply), first_ns, before or working()))
    return runs


class _Asked:
    """One request of the workload: its answer, checked, and how long it took."""

    def __init__(self, found: Workload, model: LoadedModel, door: Door) -> None:
        self._found = found
        self._model = model
        self._door = door

    async def __call__(self, items: Sequence[Item], *, new_tokens: int | None = None) -> tuple[Inferred, int]:
        model, wanted = self._model, new_tokens or self._found.new_tokens or None
        options = Options(max_new_tokens=wanted, temperature=0.0) if wanted else Options()
        began = time.perf_counter_ns()
        reply = await self._door.infer(
            model.root, items, options, task=model.task, device=model.device, precision=model.precision
        )
        taken_ns = time.perf_counter_ns() - began
        check(reply, len(items), model)
        return reply, taken_ns


async def _prompt(
    found: Workload, model: LoadedModel, examples: Callable[[int], Awaitable[list[Item]]], asked: _Asked
) -> tuple[list[Item], int]:
    """The inputs, and which attempt they are. Of several prompts the first after which the model generates the whole
    length: a greedy model may end at once after some, always after the same ones."""
    if found.kind != "tg":
        return await inputs(found, model, examples), 0
    best, longest = 0, -1
    for attempt in range(PROMPTS):
        items = await inputs(found, model, examples, attempt=attempt)
        reply, _ = await asked(items)
        if (made := done(found, items, reply)) > longest:
            best, longest = attempt, made
        if made >= found.new_tokens:
            break
    return await inputs(found, model, examples, attempt=best), best


def check(reply: Inferred, count: int, model: LoadedModel) -> None:
    """Raises unless it is an answer of this very model to so many items."""
    refuse_mock(reply.model)
    came, expected = ((one.root, one.device, one.engine, one.precision, one.task) for one in (reply.model, model))
    if came != expected:
        raise InferenceFailed(f"{model.root} moved to another device or root while it was measured")
    vectors = [output.values for output in reply.outputs if isinstance(output, Vector)]
    if len(reply.outputs) != count or not all(np.isfinite(vector).all() for vector in vectors):
        raise InferenceFailed(f"{model.root} on {model.device} gave no usable outputs, so its speed means nothing")


def unit_of(found: Workload, reply: Inferred) -> str:
    if found.kind == "rtf":
        return "audio_ms"
    if found.kind in ("pp", "tg"):
        return "tokens"
    if found.kind == "images" or reply.tokens == 0:
        return "images" if found.kind == "images" else "inputs"
    return "tokens"


def done(found: Workload, items: Sequence[Item], reply: Inferred) -> int:
    """Of one repeat, in `unit_of`. Tokens are real ones, never padding: those read, for a generation those made."""
    match found.kind:
        case "rtf":
            return sum(milliseconds(item) for item in items if isinstance(item, Audio))
        case "tg":
            return sum(len(output.ids) for output in reply.outputs if isinstance(output, Generated))
        case "pp":
            return found.length
        case "images":
            return len(items)
        case _:
            return reply.tokens or len(items)


def milliseconds(sound: Audio) -> int:
    with wave.open(io.BytesIO(sound.data)) as file:
        return int(1000 * file.getnframes() // file.getframerate())
