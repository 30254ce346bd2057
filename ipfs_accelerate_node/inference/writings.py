"""Requests whose answers are texts that are written, in a worker: from their scripts to what the daemon is told.

The reader and the tokenizing thread bring requests and take them away, the device's thread has the writer. Each request
gets one answer, its own; who asked for a stream is told of what was added after each turn before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.frames import pack_outputs
from ipfs_accelerate_node.inference.model import Generated, Item, Options, Timing
from ipfs_accelerate_node.inference.sequences import Sequences
from ipfs_accelerate_node.inference.session import Engine, Processing
from ipfs_accelerate_node.inference.writing import Script, Text, Turn, Writer


class Told(Script, Protocol):
    """A script that tells of its answer."""

    def more(self) -> tuple[str, tuple[int, ...]]:
        """What can be told now and was not yet: text and tokens."""
        ...

    def output(self) -> Generated:
        """The whole answer, once it is done."""
        ...


@runtime_checkable
class Writes(Processing, Protocol):
    """A processing whose answers are written token by token, those of several requests together."""

    def scripts(self, items: Sequence[Item], options: Options) -> Sequence[Told]:
        """One for each item, in their order; in the thread that tokenizes. Raises InvalidInput, PayloadTooLarge."""
        ...

    def sequences(self, engine: Engine) -> Sequences:
        """Where they are written."""
        ...


@dataclass(slots=True)
class Asked:
    """A request and its scripts. left: texts that are not done yet."""

    request: wire.Infer
    scripts: Sequence[Told]
    tokenize_s: float
    since: float
    began: float = 0.0
    left: int = 0
    texts: list[Text] = field(default_factory=list)


@dataclass(slots=True)
class Done:
    """What one turn came to. answers and deltas: for the daemon. tokens: that went through the model."""

    answers: list[wire.Outputs | wire.Failure | wire.Dropped] = field(default_factory=list)
    deltas: list[wire.Delta] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dropped: int = 0
    expired: int = 0


class Writings:
    """lock: of the intake; what does not say otherwise is called with it held."""

    def __init__(self, writer: Writer, lock: threading.Condition) -> None:
        self._writer = writer
        self._lock = lock
        self._new: dict[int, Asked] = {}
        self._open: dict[int, Asked] = {}
        self._cancelled: set[int] = set()

    @property
    def busy(self) -> bool:
        return bool(self._new or self._open)

    @property
    def waiting(self) -> tuple[int, int]:
        """Texts that are not let in yet, and the tokens of the prompts of those that just came."""
        tokens = sum(len(script.prompt) for asked in self._new.values() for script in asked.scripts)
        return self._writer.waiting + sum(len(asked.scripts) for asked in self._new.values()), tokens

    def put(self, asked: Asked) -> None:
        self._new[asked.request.job] = asked

    def cancel(self, job: int) -> bool | None:
        """Nobody waits for it any more. True: it is gone; False: it will be told as dropped after the next turn; None:
        it is not here."""
        if job in self._new:
            del self._new[job]
            return True
        if job in self._open:
            self._cancelled.add(job)
            return False
        return None

    def jobs(self) -> list[int]:
        """What the next turn is at; called without the lock."""
        with self._lock:
            return [*self._open, *self._new]

    def turn(self) -> Done:
        """The device's thread, without the lock: everybody's next token."""
        done, began = Done(), time.monotonic()
        with self._lock:
            self._take_in(done, began)
        turned = self._writer.turn() if self._writer.busy else Turn()
        done.rows, done.tokens = len(turned.grown), turned.read + turned.written
        for text in turned.grown:
            self._tell(text, done)
        finished = [asked for text in turned.done if (asked := self._finished(text)) is not None]
        done.seconds = time.monotonic() - began
        with self._lock:
            for asked in finished:
                del self._open[asked.request.job]
                self._cancelled.discard(asked.request.job)
                done.answers.append(self._answer(asked))
        return done

    def _take_in(self, done: Done, now: float) -> None:
        for asked in [*self._open.values(), *self._new.values()]:
            job, expires = asked.request.job, asked.request.expires
            late = expires is not None and expires <= now
            if late or job in self._cancelled:
                self._writer.drop(job)
                self._open.pop(job, None)
                self._new.pop(job, None)
                self._cancelled.discard(job)
                done.answers.append(wire.Dropped(job, expired=late))
                done.expired += late
                done.dropped += not late
        for job, asked in self._new.items():
            asked.began = now
            asked.texts = [Text(job, index, script) for index, script in enumerate(asked.scripts)]
            asked.left = len(asked.texts)
            self._open[job] = asked
            self._writer.add(asked.texts)
        self._new.clear()

    def _tell(self, text: Text, done: Done) -> None:
        asked = self._open[text.job]
        if not asked.request.stream or text.error is not None:
            return
        script = asked.scripts[text.index]
        added, ids = script.more()
        output = script.output() if text.done else None
        if added or output is not None:
            ended = (None, 0, 0) if output is None else (output.finish, output.tokens_in, len(output.ids))
            done.deltas.append(wire.Delta(text.job, text.index, added, ids, *ended))

    def _finished(self, text: Text) -> Asked | None:
        """Whether the request is with it. One that failed takes the others of its request along."""
        asked = self._open[text.job]
        if asked.left <= 0:
            return None
        asked.left -= 1
        if text.error is not None:
            asked.left = 0
            self._writer.drop(text.job)
        return asked if asked.left == 0 else None

    @staticmethod
    def _answer(asked: Asked) -> wire.Outputs | wire.Failure:
        job = asked.request.job
        error: NodeError | None = next((text.error for text in asked.texts if text.error is not None), None)
        if error is not None:
            return wire.Failure.of(error, job)
        queue_s = max(0.0, asked.began - asked.since - asked.tokenize_s)
        timing = Timing(queue_s, asked.tokenize_s, time.monotonic() - asked.began)
        return pack_outputs(job, [script.output() for script in asked.scripts], timing)[0]
