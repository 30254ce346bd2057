"""Which sources may be asked, and what became of each: pure decisions, told what happened and what time it is.

All sources work at the same time. One that sent wrong bytes never works again in this fetch, nor does one that stalls
or does not speak the protocol. One that merely broke off may try again: at once after it had delivered, else after
growing pauses, a few times; then it is tired. Who is tired gets a new chance after a while, or when nobody else can
help any more, but only if somebody made progress since: so every further try is paid for by new bytes, and the fetch
ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NoSource, SourceUnavailable
from ipfs_accelerate_node.fetch.meter import Meter
from ipfs_accelerate_node.fetch.outcome import SourceNow
from ipfs_accelerate_node.sources.source import LACKS_BLOCK, Source
from ipfs_accelerate_node.store.types import SourceFailure, SourceShare

WINDOW = 16  # blocks asked of one source at a time; times 2 MiB bounds the bytes in memory to 32 MiB
MAX_LACKS_IN_A_ROW = 16  # a source that lacks so many blocks one after another does not have this model
MAX_REST_S = 60.0  # of a Retry-After; who wants longer is skipped (G2)
MAX_RESTS = 3  # in a row, without a block in between
PAUSES_S = (0.0, 0.5, 1.0, 2.0)  # before the tries of a source that had delivered and then breaks off again and again
TRIES_UNPROVEN = 1  # further tries of one that never delivered
NEW_CHANCE_S = 10.0  # who is tired may try again then, while others work

# Broke off, but may do better next time. Everything else that is not about one block is final for this fetch.
_BROKE_OFF = frozenset({"truncated", "source_unavailable", "kubo_unavailable", "kubo_timeout"})
_PASSING = _BROKE_OFF | {"rate_limited"}


@dataclass(eq=False, slots=True)
class Standing:
    """What one source did in this fetch. Owned by the schedule; the executor counts jobs and requests."""

    source: Source
    window: int = WINDOW
    bytes: int = 0
    requests: int = 0
    rejected: int = 0
    jobs: int = 0  # under way
    seconds: float = 0.0  # with jobs under way, of those times that have ended
    busy_since: float = 0.0
    lacks: dict[Cid, SourceUnavailable] = field(default_factory=dict)
    failure: NodeError | None = None
    barred: bool = False  # never again
    tired_since: int | None = None  # asked for nothing until others made progress since; how much there was then
    rest_until: float = 0.0
    stumbles: int = 0  # in a row, without a block in between
    lacks_in_a_row: int = 0
    rests: int = 0
    meter: Meter = field(default_factory=Meter)

    @property
    def share(self) -> SourceShare:
        return SourceShare(
            self.source.name, self.source.kind, self.bytes, self.requests, self.rejected, round(self.seconds, 3)
        )

    def begin(self, now: float) -> None:
        """A job starts."""
        if not self.jobs:
            self.meter.begin(now)
            self.busy_since = now
        self.jobs += 1

    def end(self, now: float) -> None:
        """A job ended."""
        self.jobs -= 1
        if not self.jobs:
            self.seconds += now - self.busy_since

    @property
    def last_error(self) -> NodeError | None:
        """Why this source did not finish the job; None if it was never asked or always delivered."""
        return self.failure or next(iter(self.lacks.values()), None)

    @property
    def tired(self) -> bool:
        return self.tired_since is not None

    def ready(self, now: float) -> bool:
        return not self.barred and not self.tired and self.rest_until <= now

    def state(self, now: float) -> Literal["working", "idle", "resting", "out"]:
        if self.barred or self.tired:
            return "out"
        if self.jobs:
            return "working"
        return "resting" if self.rest_until > now else "idle"


class Schedule:
    """The sources of one fetch; further ones may join at any time."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self.standings: list[Standing] = []
        self.last: str | None = None  # name of the source that delivered last
        self._progress = 0  # blocks that passed their check, from whomever
        for source in sources:
            self.join(source)

    def join(self, source: Source) -> Standing:
        standing = Standing(source)
        self.standings.append(standing)
        return standing

    def renew(self) -> None:
        """Other blocks are wanted from here on: whoever is not barred may be asked for them."""
        for standing in self.standings:
            standing.tired_since = None
            standing.stumbles = standing.lacks_in_a_row = 0

    def ready(self, now: float) -> Iterator[Standing]:
        """Who may be asked now, in the order given."""
        for standing in self.standings:
            if standing.tired_since is not None and standing.rest_until <= now:
                self._rouse(standing)
            if standing.ready(now):
                yield standing

    def rouse(self) -> bool:
        """Nobody else can help: a new chance for those who are tired, if there was progress since. Whether any got
        one."""
        return any([self._rouse(standing) for standing in self.standings if not standing.barred and standing.tired])

    def _rouse(self, standing: Standing) -> bool:
        if standing.tired_since is None or standing.tired_since == self._progress:
            return False
        standing.tired_since = None
        standing.rest_until = 0.0
        standing.stumbles = standing.lacks_in_a_row = 0
        return True

    def rests_until(self, now: float) -> float | None:
        """When the next one that rests may be asked again; None if nobody rests."""
        ends = [s.rest_until for s in self.standings if not (s.barred or s.tired) and s.rest_until > now]
        return min(ends, default=None)

    def delivered(self, standing: Standing, size_bytes: int) -> None:
        """A block of this source passed its check."""
        standing.bytes += size_bytes
        standing.lacks_in_a_row = standing.rests = standing.stumbles = 0
        self._progress += 1
        self.last = standing.source.name

    def rejected(self, standing: Standing, error: IntegrityError) -> None:
        """It sent wrong bytes: never asked again, and named."""
        standing.rejected += 1
        if not isinstance(standing.failure, IntegrityError):
            standing.failure = error
        standing.barred = True

    def failed(self, standing: Standing, cid: Cid, error: SourceUnavailable, now: float) -> None:
        """It did not deliver this block."""
        if error.code in LACKS_BLOCK:
            standing.lacks_in_a_row += cid not in standing.lacks
            standing.lacks[cid] = error
            if standing.lacks_in_a_row >= MAX_LACKS_IN_A_ROW:
                self._tire(standing, now)
            return
        if not isinstance(standing.failure, IntegrityError):
            standing.failure = error
        if error.code not in _PASSING:
            standing.barred = True
        elif standing.rest_until <= now:  # not one more failure of the same moment
            self._pause(standing, error, now)

    def overtaken(self, standing: Standing, root: Cid, silence_s: float) -> None:
        """All is here, and this source still owes its part: it fell silent, and others brought it."""
        if standing.failure is None:
            name = standing.source.name
            standing.failure = SourceUnavailable(
                f"{name} sent nothing for {silence_s:.1f} s; others brought its part",
                source=name,
                cid=root,
                code="stalled",
            )
            standing.barred = True

    def _pause(self, standing: Standing, error: SourceUnavailable, now: float) -> None:
        wait_s = error.retry_after_s
        if wait_s is not None or error.code not in _BROKE_OFF:
            if wait_s is None or wait_s > MAX_REST_S or standing.rests >= MAX_RESTS:
                self._tire(standing, now)
                return
            standing.rests += 1
            standing.rest_until = now + wait_s
            standing.window = max(1, standing.window // 2)
            return
        tries = len(PAUSES_S) if standing.bytes else TRIES_UNPROVEN
        if standing.stumbles >= tries:
            self._tire(standing, now)
            return
        standing.rest_until = now + PAUSES_S[standing.stumbles]
        standing.stumbles += 1

    def _tire(self, standing: Standing, now: float) -> None:
        standing.tired_since = self._progress
        standing.rest_until = now + NEW_CHANCE_S

    @property
    def shares(self) -> tuple[SourceShare, ...]:
        """Of the sources that were asked."""
        return tuple(s.share for s in self.standings if s.requests)

    @property
    def failures(self) -> tuple[SourceFailure, ...]:
        """Of the sources that got no further turn, and why."""
        return tuple(
            SourceFailure(s.source.name, s.source.kind, s.failure.code, str(s.failure))
            for s in self.standings
            if s.failure is not None and (s.barred or s.tired)
        )

    def now(self, now: float) -> tuple[SourceNow, ...]:
        """Of every source, what it does at this moment."""
        return tuple(
            SourceNow(
                source=s.source.name,
                kind=s.source.kind,
                bytes=s.bytes,
                bytes_per_s=round(s.meter.rate(now) or 0),
                rejected=s.rejected,
                state=s.state(now),
            )
            for s in self.standings
        )

    def verdict(self, root: Cid) -> NodeError:
        """The error of a fetch that nobody could finish: IntegrityError if anyone sent wrong bytes, else NoSource, with
        the code of the only attempt or no_source. detail: attempts, one for each source that was asked."""
        tried = [(s, error) for s in self.standings if (error := s.last_error) is not None]
        attempts = [_attempt(s, error) for s, error in tried]
        for _, error in tried:
            if isinstance(error, IntegrityError):
                error.detail["attempts"] = attempts
                return error
        if not tried:
            return NoSource(
                f"{root}: no source to ask; add --gateway or --peer, or start Kubo", source="none", cid=root
            )
        if len(tried) == 1:
            return _only(tried[0], root, attempts)
        reasons = "; ".join(str(error) for _, error in tried)
        names = ", ".join(s.source.name for s, _ in tried)
        return NoSource(f"no source has all of {root}: {reasons}", source=names, cid=root, attempts=attempts)


def _only(tried: tuple[Standing, NodeError], root: Cid, attempts: Sequence[dict[str, object]]) -> NoSource:
    standing, only = tried
    cid, code = str(only.detail.get("cid", root)), only.code
    if code == "not_found" and cid != str(root):
        code = "missing_block"
    return NoSource(str(only), source=standing.source.name, cid=cid, code=code, attempts=attempts)


def _attempt(standing: Standing, error: NodeError) -> dict[str, object]:
    return {
        "source": standing.source.name,
        "kind": standing.source.kind,
        "code": error.code,
        "cid": error.detail.get("cid"),
        "reason": str(error),
    }
