"""Answers of generating models, piece by piece: the one source of every dialect's completions, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from ipfs_accelerate_node.api import asking
from ipfs_accelerate_node.api.asked_model import ready_model
from ipfs_accelerate_node.inference import Inferred, Item, LoadedModel, Options
from ipfs_accelerate_node.inference.model import Generated

WRITERS = ("text-generation", "text2text-generation")
CHATTERS = ("text-generation",)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of the answer to item ``index``. ids: of it. finish, prompt_tokens, answer_tokens: with the last
    piece of that answer."""

    index: int
    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"] | None
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """copies: how often each item stands in ``items``, one after the other. model: ready, of the caller's ``ref``."""

    ref: str
    items: Sequence[Item]
    options: Options
    model: LoadedModel
    task: str
    copies: int = 1


async def wanted(
    request: web.Request, ref: str, items: Sequence[Item], options: Options, tasks: Sequence[str], *, copies: int = 1
) -> Wanted:
    """Raises what `ready_model` raises."""
    model, task = await ready_model(request, ref, tasks)
    repeated = [item for item in items for _ in range(copies)]
    return Wanted(ref, repeated, options, model, task, copies)


async def written(request: web.Request, asked: Wanted) -> Inferred:
    """Whole answers."""
    return await asking.infer(request, asked.ref, asked.items, asked.options, task=asked.task)


async def pieces(request: web.Request, asked: Wanted) -> AsyncIterator[Piece]:
    """The pieces of all answers as they come; of one answer, in order. Leaving the iterator ends the writing."""
    writing = asking.stream(request, asked.ref, asked.items, asked.options, task=asked.task, model=asked.model)
    async with aclosing(writing) as deltas:
        async for delta in deltas:
            yield Piece(delta.index, delta.text, delta.ids, delta.finish, delta.tokens_in, delta.tokens_out)


def answers(done: Inferred) -> list[Generated]:
    return [output for output in done.outputs if isinstance(output, Generated)]
