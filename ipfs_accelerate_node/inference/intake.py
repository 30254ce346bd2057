"""What waits for a worker's device, and whose turn it is: rows that go through together, and jobs that go alone.

Three threads meet here. The reader brings requests and cancels, and tokenizes short requests at once, so that a single
text need not wait for another thread to wake up; the tokenizing thread does the long ones, and makes up the next batch
while the device is busy, where that is worth while; the device's thread takes one turn after the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.batching import Batch, Batcher, Work
from ipfs_accelerate_node.inference.edge import Cancelled, attempt
from ipfs_accelerate_node.inference.frames import pack_outputs
from ipfs_accelerate_node.inference.jobs import size_of
from ipfs_accelerate_node.inference.model import Output, Timing
from ipfs_accelerate_node.inference.session import Array, Feed, Rowwise, Session, passes_of
from ipfs_accelerate_node.inference.session import Asked as AskedRow
from ipfs_accelerate_node.inference.tally import Tally
from ipfs_accelerate_node.inference.writing import Writer
from ipfs_accelerate_node.inference.writings import Asked, Writes, Writings

AT_ONCE = 4096  # characters of a request that the reader tokenizes itself

Send = Callable[[wire.Reply, bytes], None]
Rows = Work[object, Output]


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A batch as it goes to the device. rows: of the works that still wanted an answer when it was made up. feed: what
    the pass is fed with, or why it cannot be."""

    batch: Batch[object, Output]
    rows: dict[int, AskedRow]  # by their place in the batch
    feed: Feed | NodeError

    @property
    def jobs(self) -> list[int]:
        return [work.number for work in self.batch.works]


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A pass that the device was given. result: gives its outputs, or why there are none."""

    ready: Ready
    result: Callable[[], Mapping[str, Array]] | NodeError
    began: float


@dataclass(slots=True)
class _Open:
    """A request whose rows wait."""

    request: wire.Infer
    tokenize_s: float


class Intake:
    """send: a frame to the daemon, from any thread. tokenizing: told the job that is tokenized now, 0: none."""

    def __init__(self, send: Send, tokenizing: Callable[[int], None] = lambda job: None) -> None:
        self._send = send
        self._tell = tokenizing
        self._changed = threading.Condition()
        self._whole: deque[wire.Request] = deque()
        self._long: deque[wire.Infer] = deque()  # to be tokenized by the tokenizing thread
        self._tokenizing: set[int] = set()
        self._current: int | None = None  # the job that is computed by itself
        self._cancelled: set[int] = set()  # of those that are tokenized or computed by themselves now
        self._processing: Rowwise | None = None
        self._batcher: Batcher[object, Output] | None = None
        self._writes: Writes | None = None
        self._writings: Writings | None = None
        self._open: dict[int, _Open] = {}
        self._ahead = False
        self._ready: Ready | None = None
        self._busy = False
        self._finished = 0.0  # the last pass
        self._rows_next = True
        self._tally = Tally()

    def open(self, session: Session) -> None:
        """From now on its model answers."""
        if isinstance(session.processing, Writes):
            with self._changed:
                self._writes = session.processing
                self._writings = Writings(Writer(session.processing.sequences(session.engine)), self._changed)
        if not isinstance(session.processing, Rowwise):
            return
        with self._changed:
            self._processing = session.processing
            self._batcher = Batcher(session.processing.passes(passes_of(session.engine)))
            self._ahead = bool(getattr(session.engine, "ahead", False))

    # -- the reader's

    def put(self, request: wire.Request) -> None:
        if not isinstance(request, wire.Infer) or not self._takes(request):
            with self._changed:
                self._whole.append(request)
                self._changed.notify_all()
            return
        with self._changed:
            short = not self._long and not self._tokenizing and sum(map(size_of, request.items)) <= AT_ONCE
            if not short:
                self._long.append(request)
                self._changed.notify_all()
                return
            self._tokenizing.add(request.job)
        self._tokenize(request)

    def _takes(self, request: wire.Infer) -> bool:
        """Does it go through together with others?"""
        if self._writes is not None:
            return True
        # vectors of single tokens are hundreds of times as large as those of texts, and would hold up who shares a pass
        alone = request.options.output == "hidden"
        return self._processing is not None and not alone and self._processing.takes(request.items)

    def cancel(self, job: int) -> None:
        """Nobody waits for it any more: it is answered as dropped now, or when it comes back from where it is."""
        with self._changed:
            waiting = next((r for r in (*self._whole, *self._long) if getattr(r, "job", None) == job), None)
            if waiting in self._whole:
                self._whole.remove(waiting)  # type: ignore[arg-type]
            elif waiting in self._long:
                self._long.remove(waiting)  # type: ignore[arg-type]
            elif self._batcher is not None and self._batcher.cancel(job) is not None:
                del self._open[job]
            elif self._writings is not None and (gone := self._writings.cancel(job)) is not None:
                if not gone:
                    return
            else:
                if job in self._tokenizing or job == self._current:
                    self._cancelled.add(job)
                return
            self._tally.dropped += 1
        self._send(wire.Dropped(job), b"")

    # -- tokenizing

    def tokenize(self) -> None:
        """The tokenizing thread's work, for ever."""
        while True:
            request: wire.Infer | None = None
            batch: Batch[object, Output] | None = None
            with self._changed:
                self._changed.wait_for(lambda: self._long or self._may_prepare())
                if self._may_prepare():
                    batch = self._take()
                else:
                    request = self._long.popleft()
                    self._tokenizing.add(request.job)
            if request is not None:
                self._tokenize(request)
            if batch is not None:
                ready = self._fed(batch)
                with self._changed:
                    self._ready = ready
                    self._changed.notify_all()

    def _may_prepare(self) -> bool:
        return self._ahead and self._busy and self._ready is None and self._waiting_rows > 0

    @property
    def _waiting_rows(self) -> int:
        return self._batcher.waiting_rows if self._batcher is not None else 0

    def _tokenize(self, request: wire.Infer) -> None:
        began = time.monotonic()
        self._tell(request.job)
        pieces = attempt(lambda: self._prepared(request))
        self._tell(0)
        took = time.monotonic() - began
        reply: wire.Reply | None = None
        with self._changed:
            self._tokenizing.discard(request.job)
            self._tally.tokenize_s += took
            if request.job in self._cancelled:
                self._cancelled.discard(request.job)
                self._tally.dropped += 1
                reply = wire.Dropped(request.job)
            elif isinstance(pieces, NodeError):
                reply = wire.Failure.of(pieces, request.job)
            elif self._writings is not None:
                asked = Asked(request, pieces, max(took, 1e-9), request.since or began)  # type: ignore[arg-type]
                self._writings.put(asked)
            else:
                assert self._batcher is not None
                work: Rows = Work(request.job, pieces, request.since or began, request.expires)  # type: ignore[arg-type]
                self._open[request.job] = _Open(request, took)
                self._batcher.admit(work, time.monotonic())
            self._changed.notify_all()
        if reply is not None:
            self._send(reply, b"")

    def _prepared(self, request: wire.Infer) -> Sequence[object]:
        """Rows, or scripts."""
        if self._writes is not None:
            self._writes.check(request.items, request.options)
            return self._writes.scripts(request.items, request.options)
        processing = self._processing
        assert processing is not None
        processing.check(request.items, request.options)
        return processing.prepare(request.items, request.options)

    # -- the device's

    def next(self, *, wait: bool = True) -> wire.Request | Ready | Writings | None:
        """Whose turn it is; waits for it, or returns None."""
        while True:
            with self._changed:
                self._busy = not wait
                if not wait and not self._whole and not self._shared:
                    return None
                self._changed.wait_for(lambda: self._whole or self._shared)
                self._busy = True
                rows = self._shared
                if self._whole and not (rows and self._rows_next):
                    self._rows_next = True
                    request = self._whole.popleft()
                    self._current = getattr(request, "job", None)
                    return request
                self._rows_next = False
                if self._writings is not None and self._writings.busy:
                    return self._writings
            if (ready := self.rows()) is not None:
                return ready

    @property
    def _shared(self) -> bool:
        """Is there work that several requests share?"""
        writing = self._writings is not None and self._writings.busy
        return writing or self._ready is not None or self._waiting_rows > 0

    def write(self, writings: Writings) -> wire.Answers:
        """One turn of those who write."""
        done = writings.turn()
        with self._changed:
            self._tally.wrote(done)
            told = self._told() if done.answers or done.deltas else wire.Work()
        return wire.Answers(done.answers, told, done.deltas)

    def rows(self) -> Ready | None:
        """The next batch, if there is one now."""
        with self._changed:
            ready, self._ready = self._ready, None
            batch = self._take() if ready is None else None
            self._changed.notify_all()  # the next one may be made up
        if batch is not None:
            ready = self._fed(batch)
        return ready

    def _take(self) -> Batch[object, Output] | None:
        """Called with the lock held."""
        if self._batcher is None:
            return None
        now = time.monotonic()
        for work in self._batcher.expired(now):
            del self._open[work.number]
            self._tally.expired += 1
            self._send(wire.Dropped(work.number, expired=True), b"")
        return self._batcher.take(now)

    def _fed(self, batch: Batch[object, Output]) -> Ready:
        processing, batcher = self._processing, self._batcher
        assert processing is not None
        assert batcher is not None
        rows: dict[int, AskedRow] = {}
        with self._changed:
            for at, member in enumerate(batch.members):
                if not member.work.ended:
                    request = self._open[member.work.number].request
                    rows[at] = AskedRow(member.piece, member.index, request.items[member.index], request.options)
        pieces = [row.piece for row in rows.values()]
        return Ready(batch, rows, attempt(lambda: processing.feed(pieces, batcher.passes)))

    def begin(self, ready: Ready, session: Session) -> Begun:
        """Hand a pass to the device."""
        feed, began = ready.feed, time.perf_counter()
        if isinstance(feed, NodeError) or not ready.rows:
            return Begun(ready, feed if isinstance(feed, NodeError) else dict, began)
        return Begun(ready, attempt(lambda: feed.begin(session.engine)), began)

    def finish(self, begun: Begun) -> tuple[wire.Answers, bytes]:
        """Its outputs. Returns the jobs that it completed, or that failed with it, and their payload."""
        processing, result, rows = self._processing, begun.result, list(begun.ready.rows.values())
        assert processing is not None
        found = (
            result
            if isinstance(result, NodeError)
            else attempt(lambda: processing.outputs(result(), rows) if rows else [])
        )
        now = time.perf_counter()
        seconds, self._finished = now - max(begun.began, self._finished), now  # passes may overlap
        return self._answers(begun.ready, found, seconds)

    def _answers(
        self, ready: Ready, found: list[Output | NodeError] | NodeError, seconds: float
    ) -> tuple[wire.Answers, bytes]:
        with self._changed:
            assert self._batcher is not None
            if isinstance(found, NodeError):
                done = self._batcher.fail(ready.batch, found)
            else:
                by_place = dict(zip(ready.rows, found, strict=True))
                answers = [by_place.get(at, _GONE) for at in range(len(ready.batch.members))]
                done = self._batcher.finish(ready.batch, answers, seconds)
            self._tally.count(ready.batch, seconds)
            opened = [self._open.pop(work.number) for work in done]
            work_done = self._told() if done else wire.Work()
        replies: list[wire.Outputs | wire.Failure | wire.Dropped] = []
        payloads: list[bytes] = []
        for work, known in zip(done, opened, strict=True):
            reply, payload = _answer(work, known.tokenize_s)
            replies.append(reply)
            payloads.append(payload)
        return wire.Answers(replies, work_done), b"".join(payloads)

    def told(self) -> wire.Work:
        """What was done since it was told last."""
        with self._changed:
            return self._told()

    def _told(self) -> wire.Work:
        """Called with the lock held."""
        waiting = (0, 0)
        if self._batcher is not None:
            waiting = self._batcher.waiting_rows, self._batcher.waiting_tokens
        elif self._writings is not None:
            waiting = self._writings.waiting
        told, self._tally = self._tally.told(waiting), Tally(last=self._tally.last)
        return told

    def check(self, job: int) -> None:
        """Called between the passes of a job that is computed by itself. Raises Cancelled."""
        with self._changed:
            if job in self._cancelled:
                raise Cancelled

    def done(self) -> None:
        """The job that was computed by itself is, one way or another."""
        with self._changed:
            if self._current is not None:
                self._cancelled.discard(self._current)
            self._current = None


_GONE = NodeError("nobody waits for it")


def _answer(work: Rows, tokenize_s: float) -> tuple[wire.Outputs | wire.Failure, bytes]:
    if work.error is not None:
        assert isinstance(work.error, NodeError)
        return wire.Failure.of(work.error, work.number), b""
    queue_s = max(0.0, (work.began or work.since) - work.since - tokenize_s)
    outputs = [output for output in work.answers if output is not None]
    return pack_outputs(work.number, outputs, Timing(queue_s, tokenize_s, work.compute_s))
