"""One loaded model on trial: does it agree with the reference, and how fast is it? Through the path of a request."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.benchmarks.cells import Same
from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.agreement import AGREES, INPUTS, Array, cosine
from ipfs_accelerate_node.inference.model import Audio, Generated, Image, ImageChoice, Inferred, Item, LoadedModel
from ipfs_accelerate_node.inference.model import Options as Wish
from ipfs_accelerate_node.inference.registry import Registry

BATCH = 8
NEW_TOKENS = 24
LATENCY_S, THROUGHPUT_S = 10.0, 8.0  # then measuring ends, slow as the model may be, after so many requests at least:
FEWEST, MOST = 5, 40
FEWEST_BATCHES, MOST_BATCHES = 2, 20
WARM_UP = 2


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Fixed inputs of one task. primaries: what the reference (torch, CPU, f32) made of each. generated: its greedy
    tokens for each, None for tasks that generate nothing."""

    task: str
    items: tuple[Item, ...]
    primaries: tuple[Array, ...]
    generated: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """minimum, mean: cosines over the workload. moved: inputs whose nearest neighbour in the workload is another than
    on the reference; None where the primary output is no vector."""

    minimum: float
    mean: float
    moved: int | None
    greedy: Same | None


@dataclass(frozen=True, slots=True)
class Speed:
    """unit: what throughput counts per second."""

    p50_ms: float
    p95_ms: float
    throughput: float
    unit: str


async def reference(registry: Registry, model: LoadedModel) -> Workload:
    """The workload as the loaded model answers it. Raises what a request raises."""
    items = tuple(dict.fromkeys(await registry.examples(model, INPUTS)))  # a task may have fewer that differ
    primaries = [_finite(await registry.primary(model, item), model) for item in items]
    return Workload(model.task, items, tuple(primaries), await _greedy(registry, model, items))


async def agreement(registry: Registry, model: LoadedModel, workload: Workload) -> Agreement:
    """Raises InferenceFailed for outputs that are none, or of another shape than the reference's."""
    primaries = [_finite(await registry.primary(model, item), model) for item in workload.items]
    for here, there in zip(primaries, workload.primaries, strict=True):
        if here.shape != there.shape:
            raise InferenceFailed(f"{model.device} gave an output of shape {here.shape}, the reference {there.shape}")
    cosines = [cosine(h, t) for h, t in zip(primaries, workload.primaries, strict=True)]
    greedy = None
    if workload.generated is not None:
        generated = await _greedy(registry, model, workload.items) or ()
        pairs = zip(generated, workload.generated, strict=True)
        greedy = Same(sum(here == there for here, there in pairs), len(workload.generated))
    return Agreement(min(cosines), float(np.mean(cosines)), moved_neighbours(primaries, workload.primaries), greedy)


def verdict(found: Agreement, precision: str) -> str:
    """Why this is not the reference's model; empty when it is."""
    least = AGREES[precision]
    value, what = (found.mean, "mean") if precision == "int8" else (found.minimum, "smallest")
    if value >= least:
        return ""
    return f"does not agree with torch on the CPU in f32: {what} cosine {value:.6f}, expected at least {least}"


def moved_neighbours(here: Sequence[Array], there: Sequence[Array]) -> int | None:
    """How many vectors have another nearest neighbour here than there; None where they are not vectors of one width."""
    if len(here) < 3 or any(vector.ndim != 1 or vector.shape != there[0].shape for vector in (*here, *there)):
        return None

    def nearest(vectors: Sequence[Array]) -> NDArray[np.intp]:
        rows = np.stack(vectors).astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        likeness = rows @ rows.T
        np.fill_diagonal(likeness, -np.inf)
        return np.asarray(likeness.argmax(axis=1), dtype=np.intp)

    return int((nearest(here) != nearest(there)).sum())


async def speed(registry: Registry, model: LoadedModel, items: Sequence[Item]) -> Speed:
    """Latency of requests with one input, one after the other; throughput of requests with BATCH inputs."""
    wish = Wish(max_new_tokens=NEW_TOKENS)
    inputs = cycle(items)
    for item in islice(inputs, WARM_UP):
        await _asked(registry, model, [item], wish)
    samples_ms: list[float] = []
    began = time.perf_counter()
    while len(samples_ms) < MOST and (len(samples_ms) < FEWEST or time.perf_counter() - began < LATENCY_S):
        start = time.perf_counter_ns()
        await _asked(registry, model, [next(inputs)], wish)
        samples_ms.append((time.perf_counter_ns() - start) / 1e6)
    batch = list(islice(cycle(items), BATCH))
    throughput, unit = await _throughput(registry, model, batch, wish)
    return Speed(float(np.percentile(samples_ms, 50)), float(np.percentile(samples_ms, 95)), throughput, unit)


async def _throughput(registry: Registry, model: LoadedModel, batch: Sequence[Item], wish: Wish) -> tuple[float, str]:
    unit = unit_of(model.task, batch)
    await _asked(registry, model, batch, wish)
    done, rounds = 0.0, 0
    began = time.perf_counter()
    while rounds < MOST_BATCHES and (rounds < FEWEST_BATCHES or time.perf_counter() - began < THROUGHPUT_S):
        answer = await _asked(registry, model, batch, wish)
        done += _work(unit, batch, answer)
        rounds += 1
    return done / (time.perf_counter() - began), unit


def unit_of(task: str, items: Sequence[Item]) -> str:
    if task in ("text-generation", "text2text-generation"):
        return "tokens/s"
    if all(isinstance(item, Audio) for item in items):
        return "s of audio/s"
    if all(isinstance(item, Image | ImageChoice) for item in items):
        return "images/s"
    return "texts/s" if not any(isinstance(item, Image | Audio | ImageChoice) for item in items) else "inputs/s"


def _work(unit: str, items: Sequence[Item], answer: Inferred) -> float:
    if unit == "tokens/s":
        return sum(len(output.ids) for output in answer.outputs if isinstance(output, Generated))
    if unit == "s of audio/s":
        return sum(_seconds(item) for item in items if isinstance(item, Audio))
    return len(items)


def _seconds(item: Audio) -> float:
    with wave.open(io.BytesIO(item.data)) as file:
        return float(file.getnframes() / file.getframerate())


async def _greedy(registry: Registry, model: LoadedModel, items: Sequence[Item]) -> tuple[tuple[int, ...], ...] | None:
    """In one request, so that every device has the same batches. None for tasks that generate nothing."""
    answer = await _asked(registry, model, items, Wish(max_new_tokens=NEW_TOKENS, temperature=0.0))
    generated = [output.ids for output in answer.outputs if isinstance(output, Generated)]
    return tuple(generated) if generated else None


async def _asked(registry: Registry, model: LoadedModel, items: Sequence[Item], wish: Wish) -> Inferred:
    """A request whose answer is from this very model."""
    answer = await registry.infer(model, items, wish, task=model.task)
    came = answer.model
    if came.implementation != "REAL":
        raise InferenceFailed(f"{model.root} was answered by a mock")
    expected = (model.root, model.device, model.engine, model.precision)
    if (came.root, came.device, came.engine, came.precision) != expected:
        raise InferenceFailed(f"{model.root} moved to another device while it was measured")
    return answer


def _finite(array: Array, model: LoadedModel) -> Array:
    if array.size == 0 or not np.isfinite(array).all():
        raise InferenceFailed(f"{model.root} on {model.device} gave numbers that are none")
    return array


def peak_bytes(pid: int | None) -> int | None:
    """The largest resident size that a process ever had; None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
