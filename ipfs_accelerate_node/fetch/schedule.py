"""Which source is asked next, and what became of each: pure decisions, told what happened and what time it is.

A source has the turn until it fails or has nothing more to give; what is still missing then goes to the next. A source
that sent wrong bytes never gets another turn in this fetch, nor does one that stalls or does not speak the protocol.
One that merely broke off does, as long as somebody made progress since its last turn, and once more without: so nearly
every further turn is paid for by at least one new block, and the fetch ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NoSource, SourceUnavailable
from ipfs_accelerate_node.sources.source import LACKS_BLOCK, Source
from ipfs_accelerate_node.store.types import SourceShare

WINDOW = 16  # blocks asked of one source at a time; times 2 MiB bounds the bytes in memory to 32 MiB
MAX_LACKS_IN_A_ROW = 16  # a source that lacks so many blocks one after another does not have this model
MAX_REST_S = 60.0  # of a Retry-After; who wants longer is skipped (G2)
MAX_RESTS = 3  # in a row, without a block in between

# Broke off, but may do better next time. Everything else that is not about one block is final for this fetch.
_BROKE_OFF = frozenset({"truncated", "source_unavailable", "kubo_unavailable", "kubo_timeout"})
_PASSING = _BROKE_OFF | {"rate_limited"}


@dataclass(slots=True)
class Standing:
    """What one source did in this fetch. Owned by the schedule; the executor reads window, lacks and over."""

    source: Source
    window: int = WINDOW
    bytes: int = 0
    requests: int = 0
    rejected: int = 0
    lacks: dict[Cid, SourceUnavailable] = field(default_factory=dict)
    failure: NodeError | None = None
    barred: bool = False  # no further turn
    tired: bool = False  # had its turn since anybody made progress
    over: bool = False  # its present turn has ended: nothing more is asked, what is under way may still arrive
    progressed: bool = False  # in its present turn
    stumbled: bool = False  # its present turn ended by a connection that broke off
    stumbles: int = 0  # such turns in a row, without a block in between
    lacks_in_a_row: int = 0
    rests: int = 0
    resting: bool = False  # asked for a pause that it gets
    rest_until: float = 0.0

    @property
    def share(self) -> SourceShare:
        return SourceShare(self.source.name, self.source.kind, self.bytes, self.requests, self.rejected)

    @property
    def last_error(self) -> NodeError | None:
        """Why this source did not finish the job; None if it was never asked or always delivered."""
        return self.failure or next(iter(self.lacks.values()), None)


@dataclass(frozen=True, slots=True)
class Turn:
    standing: Standing


@dataclass(frozen=True, slots=True)
class Rest:
    """Nobody may be asked for so long."""

    seconds: float


class Schedule:
    """One source after another, in the order given, round and round while there is progress."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.standings = [Standing(source) for source in sources]
        self._last = -1

    def renew(self) -> None:
        """Other blocks are wanted from here on: whoever is not barred may be asked for them, the first one first."""
        self._last = -1
        self._refresh()

    def _refresh(self) -> None:
        for standing in self.standings:
            standing.tired = False

    def next(self, now: float) -> Turn | Rest | None:
        """Who is asked next; None when nobody can help any more."""
        count = len(self.standings)
        order = [(self._last + step) % count for step in range(1, count + 1)]
        fresh = [i for i in order if not (self.standings[i].barred or self.standings[i].tired)]
        if not fresh:
            return None
        ready = next((i for i in fresh if self.standings[i].rest_until <= now), None)
        if ready is None:
            return Rest(min(self.standings[i].rest_until for i in fresh) - now)
        self._last = ready
        standing = self.standings[ready]
        standing.over = standing.progressed = standing.resting = standing.stumbled = False
        standing.lacks_in_a_row = 0
        return Turn(standing)

    def delivered(self, standing: Standing, size_bytes: int) -> None:
        """A block of this source passed its check."""
        standing.bytes += size_bytes
        standing.progressed = True
        standing.lacks_in_a_row = standing.rests = standing.stumbles = 0
        self._refresh()

    def rejected(self, standing: Standing, error: IntegrityError) -> None:
        """It sent wrong bytes: never asked again, and named."""
        standing.rejected += 1
        if not isinstance(standing.failure, IntegrityError):
            standing.failure = error
        standing.barred = standing.over = True

    def failed(self, standing: Standing, cid: Cid, error: SourceUnavailable, now: float) -> None:
        """It did not deliver this block."""
        if error.code in LACKS_BLOCK:
            standing.lacks[cid] = error
            standing.lacks_in_a_row += 1
            standing.over |= standing.lacks_in_a_row >= MAX_LACKS_IN_A_ROW
            return
        if not isinstance(standing.failure, IntegrityError):
            standing.failure = error
        first_of_this_turn = not standing.over
        standing.over = True
        standing.barred |= error.code not in _PASSING
        wait_s = error.retry_after_s
        standing.stumbled |= error.code in _BROKE_OFF and wait_s is None
        if wait_s is not None and first_of_this_turn and wait_s <= MAX_REST_S and standing.rests < MAX_RESTS:
            standing.rests += 1
            standing.resting = True
            standing.rest_until = max(standing.rest_until, now + wait_s)
            standing.window = max(1, standing.window // 2)

    def ended(self, standing: Standing) -> None:
        """Its turn is over. It gets another by itself only if it broke off after progress (or for the first time), or
        rests as it asked to."""
        standing.stumbles += standing.stumbled and not standing.progressed
        again = standing.progressed or standing.resting or (standing.stumbled and standing.stumbles <= 1)
        standing.tired = not (standing.over and again)

    @property
    def shares(self) -> tuple[SourceShare, ...]:
        """Of the sources that were asked."""
        return tuple(s.share for s in self.standings if s.requests)

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
            standing, only = tried[0]
            cid, code = str(only.detail.get("cid", root)), only.code
            if code == "not_found" and cid != str(root):
                code = "missing_block"
            name = standing.source.name
            return NoSource(str(only), source=name, cid=cid, code=code, attempts=attempts)
        reasons = "; ".join(str(error) for _, error in tried)
        names = ", ".join(s.source.name for s, _ in tried)
        return NoSource(f"no source has all of {root}: {reasons}", source=names, cid=root, attempts=attempts)


def _attempt(standing: Standing, error: NodeError) -> dict[str, object]:
    return {
        "source": standing.source.name,
        "kind": standing.source.kind,
        "code": error.code,
        "cid": error.detail.get("cid"),
        "reason": str(error),
    }
