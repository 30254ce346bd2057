"""One request to a loaded model, from its caller to the worker and back."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.model import Audio, Chat, Ids, Image, ImageChoice, Item, Options, Pair, Text

_numbers = itertools.count(1)

JobRequest = wire.Infer | wire.Primary | wire.Examples | wire.Imports
Answer = tuple[wire.Reply, bytes]


@dataclass(slots=True, eq=False)
class Job:
    """size: characters, token ids or bytes of its items: what it costs to keep it waiting."""

    request: JobRequest
    size: int
    done: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def infer(cls, items: Sequence[Item], options: Options) -> Job:
        return cls(wire.Infer(next(_numbers), list(items), options), sum(map(size_of, items)))

    @classmethod
    def primary(cls, item: Item) -> Job:
        return cls(wire.Primary(next(_numbers), item), size_of(item))

    @classmethod
    def examples(cls, first: int, count: int) -> Job:
        return cls(wire.Examples(next(_numbers), first, count), 0)

    @classmethod
    def imports(cls) -> Job:
        return cls(wire.Imports(next(_numbers)), 0)

    @property
    def number(self) -> int:
        return self.request.job

    def fail(self, error: NodeError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def answered_by(self, reply: wire.Reply, payload: bytes) -> bool:
        """Is this an answer to this job, and all of it? A worker has read strangers' files: its answers are checked."""
        match self.request, reply:
            case _, wire.Dropped(job=job):
                return job == self.number and self.done.done()
            case wire.Infer(items=items), wire.Outputs(job=job, heads=heads):
                numbers = sum(head.width for head in heads if isinstance(head, wire.VectorHead))
                return job == self.number and len(heads) == len(items) and len(payload) == 4 * numbers
            case wire.Primary(), wire.Array(job=job, shape=shape):
                return job == self.number and min(shape, default=1) >= 0 and len(payload) == 4 * math.prod(shape)
            case wire.Examples(count=count), wire.Samples(job=job, items=found):
                return job == self.number and len(found) == count
            case wire.Imports(), wire.Imported(job=job):
                return job == self.number
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
        case Image(data=data) | Audio(data=data):
            return len(data)
