"""A workload: fixed inputs, so that two machines that run it have done the same work, and raw times of doing it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ipfs_accelerate_node.errors import BadRequest, InferenceFailed
from ipfs_accelerate_node.inference.model import Embeddings, LoadedModel

Embed = Callable[[Sequence[str]], Awaitable[Embeddings]]

# Common enough that tokenizers of English models have most of them whole.
_WORDS = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no water light house river"
).split()


@dataclass(frozen=True, slots=True)
class Workload:
    """batch texts of words words each, drawn with seed; warmup runs that do not count, then repeats that do."""

    name: str
    batch: int
    words: int
    warmup: int
    repeats: int
    seed: int

    def texts(self) -> list[str]:
        chance = random.Random(self.seed)
        return [" ".join(chance.choices(_WORDS, k=self.words)) for _ in range(self.batch)]


EMBEDDING = Workload("embedding-8x64", batch=8, words=64, warmup=3, repeats=20, seed=1)


@dataclass(frozen=True, slots=True)
class Measured:
    """samples_ns: one per repeat, in order, from the call to the vectors. tokens: real ones of one batch. load_before,
    load_during: system load averages over a minute. model: as the last reply named it."""

    samples_ns: tuple[int, ...]
    tokens: int
    truncated: int
    load_before: float
    load_during: float
    model: LoadedModel


async def measure(workload: Workload, model: LoadedModel, embed: Embed) -> Measured:
    """Runs the workload through embed, which must answer as model does: REAL, the same root and device, finite vectors.

    Raises BadRequest(mock_not_measurable), InferenceFailed for an answer that is none, and what embed raises.
    """
    refuse_mock(model)
    texts = workload.texts()
    load_before = os.getloadavg()[0]
    for _ in range(workload.warmup):
        reply = await embed(texts)
        _check(reply, workload, model)
    samples_ns: list[int] = []
    for _ in range(workload.repeats):
        began = time.perf_counter_ns()
        reply = await embed(texts)
        samples_ns.append(time.perf_counter_ns() - began)
        _check(reply, workload, model)
    return Measured(
        samples_ns=tuple(samples_ns),
        tokens=reply.prompt_tokens,
        truncated=reply.truncated,
        load_before=load_before,
        load_during=os.getloadavg()[0],
        model=reply.model,
    )


def refuse_mock(model: LoadedModel) -> None:
    if model.implementation != "REAL":
        raise BadRequest(f"{model.root} is a mock: mocks are never measured or published", code="mock_not_measurable")


def _check(reply: Embeddings, workload: Workload, model: LoadedModel) -> None:
    refuse_mock(reply.model)
    if (reply.model.root, reply.model.device) != (model.root, model.device):
        raise InferenceFailed(f"{model.root} moved to another device or root while it was measured")
    if len(reply.vectors) != workload.batch or not np.isfinite(reply.vectors).all():
        raise InferenceFailed(f"{model.root} on {model.device} gave no usable vectors, so its speed means nothing")
