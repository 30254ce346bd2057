"""Continuous batching: texts of many requests written together, who come and go between two steps.

A text that comes is let in as soon as there is room for all that it may come to; its prompt is read in a turn of its
own, a bounded number of tokens a turn, so that those who are being written wait little. Every text goes by its own
rules, and is what it would be alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed, NodeError, PayloadTooLarge
from ipfs_accelerate_node.inference.edge import attempt
from ipfs_accelerate_node.inference.sequences import Scored, Sequences

READ_TOKENS = 1024  # of prompts, in one turn


class Script(Protocol):
    """What one text is to become. prompt: its tokens, at least one. limit: tokens of prompt and answer together.
    best: is the likeliest token always the one that is wanted? Else ``choose`` needs the scores."""

    limit: int
    best: bool

    @property
    def prompt(self) -> Sequence[int]: ...

    def choose(self, scores: NDArray[np.float32]) -> int:
        """The next token. scores: (vocabulary,), its own to change."""
        ...

    def add(self, token: int) -> bool:
        """Takes a token; whether the text is done with it."""
        ...


@dataclass(slots=True, eq=False)
class Text:
    """job, index: whose it is. tokens: written so far. error: why it failed. done: one way or the other."""

    job: int
    index: int
    script: Script
    tokens: int = 0
    error: NodeError | None = None
    done: bool = False
    _place: int | None = None
    _last: int = 0
    _read: int = 0


@dataclass(slots=True)
class Turn:
    """grown: texts that have a token more; done: those that are finished, or failed. tokens: that went through the
    model: of prompts, and written."""

    grown: list[Text] = field(default_factory=list)
    done: list[Text] = field(default_factory=list)
    read: int = 0
    written: int = 0


class Writer:
    """Not thread-safe. Raises nothing of what a text can do wrong: that is in its ``error``."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._waiting: deque[Text] = deque()
        self._reading: deque[Text] = deque()
        self._writing: list[Text] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._reading or self._writing)

    @property
    def waiting(self) -> int:
        """Texts that are not let in yet."""
        return len(self._waiting)

    @property
    def writing(self) -> int:
        return len(self._reading) + len(self._writing)

    def jobs(self) -> list[int]:
        """Whose texts the next turn may be at."""
        return list(dict.fromkeys(text.job for text in (*self._reading, *self._writing, *self._waiting)))

    def add(self, texts: Sequence[Text]) -> None:
        self._waiting.extend(texts)

    def drop(self, job: int) -> bool:
        """Nobody wants that job's texts any more; whether it had any here."""
        found = [text for text in self._all() if text.job == job]
        for text in found:
            self._forget(text)
        return bool(found)

    def turn(self) -> Turn:
        """Let in who fits, read prompts, write one token of each text."""
        turn = Turn()
        self._let_in(turn)
        self._read(turn)
        self._step(turn)
        return turn

    def _let_in(self, turn: Turn) -> None:
        while self._waiting:
            text = self._waiting[0]
            limit = text.script.limit
            if not self._sequences.fits(limit):
                message = f"a text of up to {limit:,} tokens does not fit into the memory that there is for it"
                self._end(text, turn, PayloadTooLarge(message, param="max_tokens", index=text.index))
                continue
            place = attempt(lambda: self._sequences.open(limit))  # noqa: B023
            if isinstance(place, NodeError):
                self._end(text, turn, place)
                continue
            if place is None:
                return  # nobody overtakes: who needs much room would wait for ever
            text._place = place
            self._reading.append(self._waiting.popleft())

    def _read(self, turn: Turn) -> None:
        while self._reading and turn.read < READ_TOKENS:
            text = self._reading[0]
            place = text._place
            assert place is not None
            piece = text.script.prompt[text._read : text._read + READ_TOKENS - turn.read]
            last = text._read + len(piece) == len(text.script.prompt)
            scores = last and not text.script.best
            found = attempt(lambda: self._sequences.read(place, piece, scores=scores))  # noqa: B023
            if isinstance(found, NodeError):
                self._end(text, turn, found)
                continue
            turn.read += len(piece)
            text._read += len(piece)
            if last:
                self._reading.popleft()
                self._writing.append(text)
                self._take(text, found, 0, 0, turn)

    def _step(self, turn: Turn) -> None:
        texts = [text for text in self._writing if text not in turn.grown]
        if not texts:
            return
        wanted = [row for row, text in enumerate(texts) if not text.script.best]
        places = [text._place for text in texts if text._place is not None]
        found = attempt(lambda: self._sequences.step(places, [text._last for text in texts], scores=wanted))
        if isinstance(found, NodeError):
            for text in texts:
                self._end(text, turn, found)
            return
        turn.written += len(texts)
        for row, text in enumerate(texts):
            self._take(text, found, row, wanted.index(row) if row in wanted else 0, turn)

    def _take(self, text: Text, found: Scored, row: int, scored: int, turn: Turn) -> None:
        """The next token of one text, out of what a pass gave."""
        if found.best[row] < 0:
            self._end(text, turn, InferenceFailed("the model's scores are not finite numbers", index=text.index))
            return
        token = attempt(
            lambda: int(found.best[row]) if text.script.best else text.script.choose(np.array(found.scores[scored]))
        )
        done = attempt(lambda: text.script.add(token)) if isinstance(token, int) else token
        if isinstance(done, NodeError):
            self._end(text, turn, done)
            return
        assert isinstance(token, int)
        text._last = token
        text.tokens += 1
        turn.grown.append(text)
        if done:
            self._end(text, turn)

    def _end(self, text: Text, turn: Turn, error: NodeError | None = None) -> None:
        text.error, text.done = error, True
        self._forget(text)
        turn.done.append(text)

    def _forget(self, text: Text) -> None:
        for texts in (self._waiting, self._reading, self._writing):
            if text in texts:
                texts.remove(text)
        if text._place is not None:
            self._sequences.close(text._place)
            text._place = None

    def _all(self) -> Iterator[Text]:
        yield from (*self._waiting, *self._reading, *self._writing)
