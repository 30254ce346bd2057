"""One request to a loaded model, from its caller to the worker and back."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import msgspec

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Ids,
    Image,
    ImageChoice,
    Item,
    Options,
    Pair,
    PixelValues,
    Text,
)

_numbers = itertools.count(1)

JobRequest = wire.Infer | wire.Primary | wire.Examples | wire.Imports | wire.Tokenize | wire.Decode
Answer = tuple[wire.Reply, wire.Payload]
TOKENS_OF_PICTURE = 256


class Deltas:
    """What was added to a job's answers and not taken yet; of one answer, as one. told: has anything been?"""

    def __init__(self) -> None:
        self.told = False
        self._waiting: dict[int, wire.Delta] = {}
        self._there = asyncio.Event()

    def put(self, delta: wire.Delta) -> None:
        self.told = True
        before = self._waiting.get(delta.index)
        if before is not None:
            text, ids = before.text + delta.text, (*before.ids, *delta.ids)
            delta = msgspec.structs.replace(delta, text=text, ids=ids)
        self._waiting[delta.index] = delta
        self._there.set()

    def end(self) -> None:
        """There may be no more of them."""
        self._there.set()

    async def take(self) -> list[wire.Delta]:
        """Waits for some; none: woken by ``end``."""
        await self._there.wait()
        self._there.clear()
        taken, self._waiting = list(self._waiting.values()), {}
        return taken


@dataclass(slots=True, eq=False)
class Job:
    """size: characters, token ids or bytes of its items: what it costs to keep it waiting. tokens: what it costs to
    compute, as far as that can be told before it is tokenized. key: of jobs whose answers are the same; None: it shares
    none. tries: workers that ended while they had it."""

    request: JobRequest
    size: int
    tokens: int = 1
    key: Hashable | None = None
    since: float = field(default_factory=time.monotonic)
    tries: int = 0
    settled: bool = False
    deltas: Deltas = field(default_factory=lambda: Deltas())
    _callers: list[asyncio.Future[Answer]] = field(default_factory=list)

    @classmethod
    def infer(
        cls, items: Sequence[Item], options: Options, *, deadline_s: float | None = None, stream: bool = False
    ) -> Job:
        """deadline_s: seconds from now after which nobody wants the answer. stream: its ``deltas`` are told."""
        now = time.monotonic()
        expires = None if deadline_s is None else now + deadline_s
        request = wire.Infer(next(_numbers), list(items), options, since=now, expires=expires, stream=stream)
        drawn = options.temperature and options.seed is None  # answers differ from one time to the next
        key = None if drawn or stream or expires is not None else (tuple(items), options)
        tokens = sum(map(tokens_of, items)) + len(items) * (options.max_new_tokens or 0)
        return cls(request, sum(map(size_of, items)), max(1, tokens), key, since=now)

    @classmethod
    def primary(cls, item: Item) -> Job:
        return cls(wire.Primary(next(_numbers), item), size_of(item), tokens_of(item))

    @classmethod
    def examples(cls, first: int, count: int) -> Job:
        return cls(wire.Examples(next(_numbers), first, count), 0)

    @classmethod
    def imports(cls) -> Job:
        return cls(wire.Imports(next(_numbers)), 0)

    @classmethod
    def tokenize(cls, texts: Sequence[str], *, special: bool) -> Job:
        return cls(wire.Tokenize(next(_numbers), list(texts), special), sum(map(len, texts)))

    @classmethod
    def decode(cls, rows: Sequence[Sequence[int]], *, skip_special: bool) -> Job:
        return cls(wire.Decode(next(_numbers), [list(row) for row in rows], skip_special), sum(map(len, rows)))

    @property
    def number(self) -> int:
        return self.request.job

    @property
    def expires(self) -> float | None:
        return self.request.expires if isinstance(self.request, wire.Infer) else None

    def join(self) -> asyncio.Future[Answer]:
        """A caller's own future of the answer."""
        caller: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._callers.append(caller)
        return caller

    def leave(self, caller: asyncio.Future[Answer]) -> bool:
        """Whether nobody waits for it any more."""
        if caller in self._callers:
            self._callers.remove(caller)
        return not self._callers

    @property
    def wanted(self) -> bool:
        return bool(self._callers)

    def told(self, delta: wire.Delta) -> bool:
        """Takes a part of its answer; whether it is one."""
        request = self.request
        fits = isinstance(request, wire.Infer) and request.stream and 0 <= delta.index < len(request.items)
        if fits:
            self.deltas.put(delta)
        return fits

    def settle(self, reply: wire.Reply, payload: wire.Payload) -> None:
        self.settled = True
        for caller in self._callers:
            if not caller.done():
                caller.set_result((reply, payload))

    def fail(self, error: NodeError) -> None:
        self.settled = True
        for caller in self._callers:
            if not caller.done():
                caller.set_exception(error)

    def answered_by(self, reply: wire.Reply, payload: wire.Payload) -> bool:
        """Is this an answer to this job, and all of it? A worker has read strangers' files: its answers are checked."""
        match self.request, reply:
            case _, wire.Dropped(job=job, expired=expired):
                return job == self.number and (expired or not self.wanted)
            case wire.Infer(items=items), wire.Outputs(job=job, heads=heads):
                widths = [head.width for head in heads if isinstance(head, wire.VectorHead | wire.TensorHead)]
                whole = min(widths, default=1) >= 1 and len(payload) == 4 * sum(widths)
                return job == self.number and len(heads) == len(items) and whole
            case wire.Primary(), wire.Array(job=job, shape=shape):
                return job == self.number and min(shape, default=1) >= 0 and len(payload) == 4 * math.prod(shape)
            case wire.Examples(count=count), wire.Samples(job=job, items=found):
                return job == self.number and len(found) == count
            case wire.Imports(), wire.Imported(job=job):
                return job == self.number
            case wire.Tokenize(texts=asked), wire.Tokenized(job=job, rows=rows):
                return job == self.number and len(rows) == len(asked)
            case wire.Decode(rows=given), wire.Decoded(job=job, texts=texts):
                return job == self.number and len(texts) == len(given)
            case _:
                return False


def size_of(item: Item) -> int:
    match item:
        case Text(text=text):
            return len(text)
        case Pair(first=first, second=second):
            return len(first) + len(second)
        case Ids(ids=ids):
            return len(ids)
        case Chat(messages=messages):
            return sum(len(message.content) for message in messages)
        case ImageChoice(data=data, labels=labels):
            return len(data) + sum(map(len, labels))
        case Image(data=data) | Audio(data=data) | PixelValues(data=data):
            return len(data)


def tokens_of(item: Item) -> int:
    """About how many tokens an item has, before it is tokenized."""
    match item:
        case Ids(ids=ids):
            return len(ids)
        case Image() | PixelValues():
            return TOKENS_OF_PICTURE
        case ImageChoice(labels=labels):
            return TOKENS_OF_PICTURE + sum(len(label) // 4 + 2 for label in labels)
        case Audio(data=data):
            return len(data) // 640 + 1
        case _:
            return size_of(item) // 4 + 2
