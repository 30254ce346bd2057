"""Which rows go through the model together: pure, without clock, thread or device.

Requests come in as *works* of one or more rows; ``take`` gives the next batch whenever the device is free, so batches
form while it is busy and nobody waits for a timer. A batch is one *anchor* and rows of about its length:

- the anchor is a row of the work that was served least so far (start-time fair queueing, in tokens), so that a request
  of thousands of rows does not stand in the way of one row;
- every second batch it is the row that has waited for longest, if that is longer than ``age_s``, so that a stream of
  newcomers does not stand in the way of anything: behind k older rows, a row that is over the limit is served within
  2 (k + 1) batches;
- the others are the rows nearest in length, of any work, while that costs less in padding than a pass of their own
  would, and fits into the budget. Of one work at most ``window`` rows are looked at, in their order.

A work is answered once: when its last row is, when one of its rows fails, when it is cancelled, or when it expires.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Content = TypeVar("Content")
Answer = TypeVar("Answer")
WINDOW_ROWS = 512
AGE_S = 1.0


@dataclass(frozen=True, slots=True)
class Passes:
    """What an engine does well in one pass.

    tokens: at most, padding included (one row may have more). rows: at most. overhead: what a pass costs beside its
    tokens, in tokens. step: lengths are filled up to a multiple of it, so that the engine sees few shapes; even: for
    the same reason a batch has 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, … rows, and those above wait for the next.
    packed: rows lie one behind the other, without padding.
    """

    tokens: int = 1024
    rows: int = 128
    overhead: int = 32
    step: int = 1
    even: bool = False
    packed: bool = False

    def length(self, longest: int) -> int:
        """What rows of at most so many tokens are filled up to."""
        return -(-longest // self.step) * self.step

    def count(self, rows: int) -> int:
        """Of so many rows, how many go together."""
        unit = 1 << max(0, rows.bit_length() - 3)
        return rows - rows % unit if self.even else rows

    def padded(self, rows: int, longest: int, tokens: int) -> int:
        """Tokens that go through the model for rows of ``tokens`` tokens together, ``longest`` of the longest."""
        return tokens if self.packed else rows * self.length(longest)


@dataclass(frozen=True, slots=True)
class Piece(Generic[Content]):
    """One row. lane: only rows of one lane go together. cost: its tokens, from 1."""

    lane: Hashable
    cost: int
    content: Content


@dataclass(slots=True, eq=False)
class Work(Generic[Content, Answer]):
    """One request. since, expires: by the clock of the caller; expires None: never. The rest is the batcher's."""

    number: int
    pieces: Sequence[Piece[Content]]
    since: float = 0.0
    expires: float | None = None
    answers: list[Answer | None] = field(init=False)
    left: int = field(init=False)
    began: float | None = None  # when its first row was taken
    compute_s: float = 0.0
    error: Exception | None = None
    ended: bool = False
    served: float = 0.0
    shown: int = 0  # rows that were looked at so far

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.pieces)
        self.left = len(self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Member(Generic[Content, Answer]):
    """A row that is looked at. order: of all rows, by when they were first looked at, which is ``entered``."""

    work: Work[Content, Answer]
    index: int
    piece: Piece[Content]
    order: int
    entered: float

    @property
    def key(self) -> tuple[int, int]:
        return self.piece.cost, self.order


@dataclass(frozen=True, slots=True, eq=False)
class Batch(Generic[Content, Answer]):
    """members: of one lane. tokens: real ones."""

    members: tuple[Member[Content, Answer], ...]
    tokens: int
    padded: int

    @property
    def live(self) -> tuple[Member[Content, Answer], ...]:
        """Those whose work still wants an answer."""
        return tuple(member for member in self.members if not member.work.ended)

    @property
    def works(self) -> tuple[Work[Content, Answer], ...]:
        return tuple(dict.fromkeys(member.work for member in self.live))


class Batcher(Generic[Content, Answer]):
    """Not thread-safe. age_s: see above; by the clock whose times are passed in."""

    def __init__(self, passes: Passes, *, window: int = WINDOW_ROWS, age_s: float = AGE_S) -> None:
        self.passes = passes
        self._window = window
        self._age_s = age_s
        self._works: dict[int, Work[Content, Answer]] = {}
        self._members: dict[int, Member[Content, Answer]] = {}  # all that are looked at, the oldest first
        self._of: dict[int, dict[int, Member[Content, Answer]]] = {}  # the same, by their work
        self._lanes: dict[Hashable, list[tuple[int, int]]] = {}  # the same, by lane, by length
        self._orders = 0
        self._taken = 0
        self._clock = 0.0  # of fairness: what the work of the last anchor had been served
        self.waiting_rows = 0
        self.waiting_tokens = 0
        self.busy_rows = 0

    def __len__(self) -> int:
        """Works that are not answered."""
        return len(self._works)

    def __contains__(self, number: int) -> bool:
        return number in self._works

    def admit(self, work: Work[Content, Answer], now: float) -> None:
        """Its number must not be that of another one that is waiting, and it has a row."""
        assert work.number not in self._works
        assert work.pieces
        self._works[work.number] = work
        self._of[work.number] = {}
        work.served = self._clock
        self.waiting_rows += len(work.pieces)
        self.waiting_tokens += sum(piece.cost for piece in work.pieces)
        self._show(work, now)

    def _show(self, work: Work[Content, Answer], now: float) -> None:
        own = self._of[work.number]
        while work.shown < len(work.pieces) and len(own) < self._window:
            member = Member(work, work.shown, work.pieces[work.shown], self._orders, now)
            self._orders += 1
            work.shown += 1
            own[member.order] = self._members[member.order] = member
            insort(self._lanes.setdefault(member.piece.lane, []), member.key)

    def _hide(self, member: Member[Content, Answer]) -> None:
        del self._members[member.order], self._of[member.work.number][member.order]
        lane = self._lanes[member.piece.lane]
        del lane[bisect_left(lane, member.key)]
        if not lane:
            del self._lanes[member.piece.lane]
        self.waiting_rows -= 1
        self.waiting_tokens -= member.piece.cost

    # -- taking

    def expired(self, now: float) -> list[Work[Content, Answer]]:
        """Those whose time is over; they are out."""
        late = [work for work in self._works.values() if work.expires is not None and work.expires <= now]
        for work in late:
            self._end(work)
        return late

    def take(self, now: float) -> Batch[Content, Answer] | None:
        """The next batch; None when no row waits. Every batch is given back with ``finish`` or ``fail``."""
        if not self._members:
            return None
        anchor = self._anchor(now)
        self._taken += 1
        members = [anchor]
        tokens, longest = anchor.piece.cost, anchor.piece.cost
        for member in self._near(anchor):
            most, total = max(longest, member.piece.cost), tokens + member.piece.cost
            padded = self.passes.padded(len(members) + 1, most, total)
            if len(members) >= self.passes.rows or padded > self.passes.tokens:
                break
            if padded - total > max(self.passes.overhead, padded // 8):
                break
            members.append(member)
            longest, tokens = most, total
        if (count := self.passes.count(len(members))) < len(members):
            del members[count:]
            tokens = sum(member.piece.cost for member in members)
            longest = max(member.piece.cost for member in members)
        for member in members:
            member.work.served += member.piece.cost
            if member.work.began is None:
                member.work.began = now
            self._hide(member)
        for work in dict.fromkeys(member.work for member in members):
            self._show(work, now)
        self.busy_rows += len(members)
        return Batch(tuple(members), tokens, self.passes.padded(len(members), longest, tokens))

    def _anchor(self, now: float) -> Member[Content, Answer]:
        oldest = next(iter(self._members.values()))
        if self._taken % 2 and now - oldest.entered > self._age_s:
            return oldest
        waiting = (self._works[number] for number, own in self._of.items() if own)
        work = min(waiting, key=lambda work: work.served)
        self._clock = max(self._clock, work.served)
        return next(iter(self._of[work.number].values()))

    def _near(self, anchor: Member[Content, Answer]) -> Iterator[Member[Content, Answer]]:
        """Rows of its lane, the nearest in length first; without padding, the oldest first."""
        lane = self._lanes[anchor.piece.lane]
        if self.passes.packed:
            yield from (m for m in self._members.values() if m is not anchor and m.piece.lane == anchor.piece.lane)
            return
        at = bisect_left(lane, anchor.key)
        below, above, length = at - 1, at + 1, anchor.piece.cost
        while below >= 0 or above < len(lane):
            down = length - lane[below][0] if below >= 0 else None
            up = lane[above][0] - length if above < len(lane) else None
            if up is None or (down is not None and down <= up):
                yield self._members[lane[below][1]]
                below -= 1
            else:
                yield self._members[lane[above][1]]
                above += 1

    # -- giving back

    def finish(
        self, batch: Batch[Content, Answer], answers: Sequence[Answer | Exception], seconds: float
    ) -> list[Work[Content, Answer]]:
        """answers: of ``batch.members``, in their order; those of works that have ended are not looked at. Returns the
        works that are complete now, or have failed (``error``), in the order in which they came."""
        self.busy_rows -= len(batch.members)
        ended: list[Work[Content, Answer]] = []
        for work in batch.works:
            work.compute_s += seconds
        for member, answer in zip(batch.members, answers, strict=True):
            work = member.work
            if work.ended:
                continue
            if isinstance(answer, Exception):
                work.error = answer
            else:
                work.answers[member.index] = answer
                work.left -= 1
            if work.error is not None or work.left == 0:
                self._end(work)
                ended.append(work)
        return sorted(ended, key=lambda work: work.number)

    def fail(self, batch: Batch[Content, Answer], error: Exception) -> list[Work[Content, Answer]]:
        """The pass failed: so have the works that had a row in it."""
        self.busy_rows -= len(batch.members)
        struck = list(batch.works)
        for work in struck:
            work.error = error
            self._end(work)
        return struck

    def cancel(self, number: int) -> Work[Content, Answer] | None:
        """The work, which is out now; None if there is none."""
        work = self._works.get(number)
        if work is not None:
            self._end(work)
        return work

    def _end(self, work: Work[Content, Answer]) -> None:
        for member in list(self._of[work.number].values()):
            self._hide(member)
        rest = work.pieces[work.shown :]
        self.waiting_rows -= len(rest)
        self.waiting_tokens -= sum(piece.cost for piece in rest)
        del self._works[work.number], self._of[work.number]
        work.ended = True
