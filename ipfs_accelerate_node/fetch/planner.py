"""Which source fetches which leaves: pure decisions over sets of leaves, told what happened and what time it is.

The leaves of all files are numbered in one row; a set of them is an integer with one bit each, so that every question
is a few machine operations however large the model is. A source gets a lease of consecutive leaves of one file, as many
as it brings in about a second. When nothing is free any more, a source without work takes over the far end of the lease
that would end last; and when only leaves are left whose bytes are on their way already, it races for those: each is
then on its way twice at most, not counting sources that have fallen silent, and once from any source. So a source that
slows down or stalls loses its leaves to the others, and the last leaf comes from whoever is fast.

While some sources are themselves still fetching (their `Held` says what they have), a complete one is asked first for
what none of them has, in small leases at places of our own: so nodes that fetch the same model at the same time have
different parts to exchange, and the complete one sends little more than one copy.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.sources.source import Held

LEASE_S = 0.75  # of work at a source's measured rate …
MIN_LEASE_BYTES = 4 << 20  # … but at least so much, also before anything was measured
MAX_LEASE_BYTES = 256 << 20
SWARM_LEASE_BYTES = 4 << 20  # among nodes that are still fetching: what they have changes quickly
STEAL_AFTER_S = 0.3  # a lease that ends sooner is left alone
RACE_AFTER_S = 0.5
RACE_BYTES = 4 << 20  # raced for at a time
SWARM_PATIENCE_S = 2.0  # a complete source is not asked for what the others will have given by then
SILENT_S = 0.4  # a lease that brings nothing for so long is late
DEAD_S = 2.0  # … and for so long is not counted on: who else could bring its leaves may race for them too
SWARM_LAST_PART = 0.45  # of the leaves: which a complete source is not asked for while the others get more of it …
SWARM_STILL_S = 1.0  # … which must not take longer than this …
SWARM_DELAY = 0.25  # … nor altogether more than that and this part of the time until then
_ASSUMED_RATE = 20 << 20  # bytes a second, where nothing was measured yet


@dataclass(eq=False, slots=True)
class Lease:
    """Leaves first to stop - 1 of one file, on their way from holder. stop comes down when others take them over.

    cursor: the leaves below it are being carried, or have been; those from it on may be taken over. race: these leaves
    are on their way from somebody else too.
    """

    holder: Hashable
    file: FilePlan
    first: int
    stop: int
    base: int  # number of the file's first leaf
    began: float
    race: bool
    cursor: int = field(init=False)
    received_bytes: int = 0
    last: float = field(init=False)  # when anything came

    def __post_init__(self) -> None:
        self.cursor = self.first
        self.last = self.began

    def leaf(self, number: int) -> Leaf:
        return self.file.leaves[number - self.base]

    @property
    def leaves(self) -> Sequence[Leaf]:
        return self.file.leaves[self.first - self.base : self.stop - self.base]

    def left_s(self, size_bytes: int, now: float) -> float:
        """How long so many bytes of it will still take, going by what came so far; silence counts against it, however
        little is left."""
        passed, silence_s = now - self.began, now - self.last
        rate = self.received_bytes / passed if self.received_bytes and passed > 0 else float(_ASSUMED_RATE)
        return max(size_bytes / rate, 2 * silence_s if silence_s >= SILENT_S else 0.0)


@dataclass(slots=True)
class _Reach:
    """What a source can give. has: None if all. growing: it is still fetching itself."""

    has: int | None = None
    lacks: int = 0
    growing: bool = False
    rate: float | None = None
    away: bool = False


class Planner:
    """Owns which leaf is free, on its way or here.

    files: distinct ones. missing: of each the leaves that are wanted (bit i is leaf i). start: of all leaves, counted
    through, where to begin among nodes that fetch together; any number, from which all further places follow.
    """

    def __init__(self, files: Sequence[FilePlan], missing: Sequence[int], *, start: int = 0) -> None:
        self._files = files
        self._bases = [0]
        for file in files:
            self._bases.append(self._bases[-1] + len(file.leaves))
        self.missing = 0
        for base, mask in zip(self._bases, missing, strict=False):
            self.missing |= mask << base
        self._free = self.missing
        self._start = start % max(1, self._bases[-1])
        self._random = random.Random(start)
        self.courted = False  # others ask us for what we fetch: who has not all of it may be fetching it too
        self._reaches: dict[Hashable, _Reach] = {}
        self._leases: list[Lease] = []
        self._total = self.missing.bit_count()
        self._began: float | None = None
        self._held_back_since: float | None = None
        self._grew_at = 0.0

    @property
    def complete(self) -> bool:
        return not self.missing

    def number(self, file: int, leaf: int) -> int:
        """Of a leaf by the place of its file among files and its own in the file."""
        return self._bases[file] + leaf

    def file_of(self, number: int) -> int:
        """The place of its file among files."""
        return bisect_right(self._bases, number) - 1

    def leaf(self, number: int) -> Leaf:
        at = self.file_of(number)
        return self._files[at].leaves[number - self._bases[at]]

    def join(self, holder: Hashable, held: Held | None = None, now: float = 0.0) -> bool:
        """A source may be given leases from now on, of what it has; called again whenever that changes. held: None for
        all. Returns whether it has something now that it had not."""
        reach = self._reaches.setdefault(holder, _Reach(has=0))
        before = reach.has
        if held is None or held.complete:
            reach.has, reach.growing = None, False
            return before is not None
        has = 0
        for base, file in zip(self._bases, self._files, strict=False):
            bitmap = held.files.get(file.cid.canonical, b"")
            has |= (int.from_bytes(bitmap, "little") & ((1 << len(file.leaves)) - 1)) << base
        reach.has, reach.growing = has, bool(held.files)
        new = has & ~(before or 0)
        reach.lacks &= ~new
        if new & self._free:
            self._grew_at = now
        return bool(new)

    def lacks(self, holder: Hashable, number: int) -> None:
        """The source has not got this leaf after all."""
        self._reaches[holder].lacks |= 1 << number

    def growing(self, holder: Hashable) -> bool:
        reach = self._reaches.get(holder)
        return reach is not None and reach.growing

    def next(self, holder: Hashable, now: float, rate: float | None) -> Lease | None:
        """What this source does next; None if there is nothing for it at the moment. rate: its bytes a second, None
        before that was measured."""
        reach = self._reaches.get(holder)
        if reach is None:
            return None
        reach.away = False
        self._began = now if self._began is None else self._began
        able = self.missing & ~reach.lacks
        if reach.has is not None:
            able &= reach.has
        if not able:
            return None
        reach.rate = rate
        return (
            self._fresh(holder, reach, able & self._free, now)
            or self._taken_over(holder, able, now, rate)
            or self._raced_for(holder, able, now, rate)
        )

    def received(self, lease: Lease, size_bytes: int, now: float) -> None:
        """So many bytes of a lease came, not checked yet."""
        lease.received_bytes += size_bytes
        lease.last = now

    def carrying(self, lease: Lease, number: int) -> None:
        """This leaf and those before it in the lease are being carried: nobody else takes them over."""
        lease.cursor = max(lease.cursor, number + 1)

    def wants(self, number: int) -> bool:
        return bool(self.missing >> number & 1)

    def landed(self, number: int) -> bool:
        """A leaf is here, checked. False if it was already."""
        bit = 1 << number
        new = bool(self.missing & bit)
        self.missing &= ~bit
        self._free &= ~bit
        return new

    def give_back(self, lease: Lease) -> None:
        """It ended: what it did not bring and nobody else has on the way is free again."""
        self._leases.remove(lease)
        elsewhere = 0
        for other in self._leases:
            elsewhere |= _span(other.first, other.stop)
        self._free |= _span(lease.first, lease.stop) & self.missing & ~elsewhere

    def leave(self, holder: Hashable) -> None:
        """The source gives nothing, until it asks again: nothing is left for it. Its leases are given back by
        themselves."""
        if (reach := self._reaches.get(holder)) is not None:
            reach.away = True

    def silent(self, now: float) -> dict[Hashable, float]:
        """Whose own leases bring nothing, and for how many seconds already."""
        waits = ((lease.holder, now - lease.last) for lease in self._leases if not lease.race)
        return {holder: silence_s for holder, silence_s in waits if silence_s >= SILENT_S}

    # private

    def _fresh(self, holder: Hashable, reach: _Reach, free: int, now: float) -> Lease | None:
        """Of what nobody has on the way."""
        if not free:
            return None
        swarm = [r for other, r in self._reaches.items() if self._grows(r) and not r.away and other is not holder]
        limit, start = MAX_LEASE_BYTES, 0
        if swarm or reach.growing:
            limit, start = SWARM_LEASE_BYTES, self._start
            theirs = 0
            for other in swarm:
                theirs |= (other.has or 0) & ~other.lacks
            rare = free & ~theirs
            if reach.has is None and swarm and (self._holds_back(now) or (not rare and self._soon_from(swarm, free))):
                return None
            free = rare or free
        want = min(limit, max(MIN_LEASE_BYTES, int((reach.rate or 0) * LEASE_S)))
        first = _lowest(free, start)
        self._start = self._random.randrange(self._bases[-1])
        return self._lease(holder, first, self._end_of_run(free, first, want), now, race=False)

    def _grows(self, reach: _Reach) -> bool:
        return reach.growing or (self.courted and reach.has is not None)

    def _holds_back(self, now: float) -> bool:
        """Whether the last part is left to those who are still fetching: for a while, as long as they get more of
        it."""
        if self._free.bit_count() > self._total * SWARM_LAST_PART:
            return False
        if self._held_back_since is None:
            self._held_back_since = now
        since = self._held_back_since
        limit_s = SWARM_STILL_S + SWARM_DELAY * (since - (since if self._began is None else self._began))
        return now - since < limit_s and now - max(since, self._grew_at) < SWARM_STILL_S

    def _soon_from(self, swarm: Iterable[_Reach], wanted: int) -> bool:
        """Whether those who are still fetching will have given all of it in a moment."""
        rate = sum(_ASSUMED_RATE if r.rate is None else r.rate for r in swarm)
        return self._bytes(wanted) <= rate * SWARM_PATIENCE_S

    def _taken_over(self, holder: Hashable, able: int, now: float, rate: float | None) -> Lease | None:
        """The far end of the lease that would end last."""
        best: tuple[float, Lease, int] | None = None
        for lease in self._leases:
            rest = _span(lease.cursor, lease.stop) & able
            if lease.holder is holder or lease.race or not rest:
                continue
            left_s = lease.left_s(self._bytes(_span(lease.cursor, lease.stop) & self.missing), now)
            if left_s >= STEAL_AFTER_S and (best is None or left_s > best[0]):
                best = (left_s, lease, rest)
        if best is None:
            return None
        left_s, lease, rest = best
        theirs = self._bytes(_span(lease.cursor, lease.stop)) / left_s
        mine = rate or theirs
        count = max(1, int((lease.stop - lease.cursor) * mine / (mine + theirs)))
        far = rest & _span(lease.stop - count, lease.stop) or rest
        first = _lowest(far, 0)
        stop = self._end_of_run(far, first, MAX_LEASE_BYTES)
        twice = self._on_the_way_twice()
        self._free |= _span(stop, lease.stop) & self.missing & ~twice  # for the next one
        lease.stop = first
        return self._lease(holder, first, stop, now, race=False)

    def _raced_for(self, holder: Hashable, able: int, now: float, rate: float | None) -> Lease | None:
        """Leaves of another's lease that are late."""
        best: tuple[float, int] | None = None
        taken = self._on_the_way_twice(now) | self._on_the_way_from(holder)
        for lease in self._leases:
            left = _span(lease.first, lease.stop) & self.missing & ~taken
            if lease.holder is holder or not left & able:
                continue
            size = self._bytes(left)
            left_s = lease.left_s(size, now)
            own_s = min(size, RACE_BYTES) / rate if rate else 0.0
            if left_s >= RACE_AFTER_S + own_s and (best is None or left_s > best[0]):
                best = (left_s, left & able)
        if best is None:
            return None
        first = _lowest(best[1], 0)
        return self._lease(holder, first, self._end_of_run(best[1], first, RACE_BYTES), now, race=True)

    def _on_the_way_from(self, holder: Hashable) -> int:
        own = 0
        for lease in self._leases:
            own |= _span(lease.first, lease.stop) if lease.holder is holder else 0
        return own

    def _on_the_way_twice(self, now: float | None = None) -> int:
        """now: leases that have been silent for DEAD_S by then do not count."""
        once = twice = 0
        for lease in self._leases:
            if now is not None and now - lease.last >= DEAD_S:
                continue
            part = _span(lease.first, lease.stop) & self.missing
            twice |= once & part
            once |= part
        return twice

    def _lease(self, holder: Hashable, first: int, stop: int, now: float, *, race: bool) -> Lease:
        at = self.file_of(first)
        lease = Lease(holder, self._files[at], first, stop, self._bases[at], now, race)
        self._leases.append(lease)
        self._free &= ~_span(first, stop)
        return lease

    def _end_of_run(self, free: int, first: int, want_bytes: int) -> int:
        """After the last leaf of the run that begins at first: within its file, in one piece, about want_bytes."""
        at = self.file_of(first)
        base = self._bases[at]
        stop = min(self._bases[at + 1], first + _lowest(~(free >> first), 0))
        leaves = self._files[at].leaves
        start = leaves[first - base].offset
        number = first + 1
        while number < stop and leaves[number - base].offset + leaves[number - base].length - start <= want_bytes:
            number += 1
        return number

    def _bytes(self, numbers: int) -> int:
        """Of these leaves; 1 for an empty one, which is work too."""
        if not numbers:
            return 0
        size, first = 0, _lowest(numbers, 0)
        at = self.file_of(first)
        for offset in _each(numbers >> first):
            while first + offset >= self._bases[at + 1]:
                at += 1
            size += self._files[at].leaves[first + offset - self._bases[at]].length or 1
        return size


def _span(first: int, stop: int) -> int:
    return ((1 << max(0, stop - first)) - 1) << first


def _lowest(numbers: int, start: int) -> int:
    """The first member at or after start, going round; numbers is not empty (it may be negative: without an end)."""
    if ahead := numbers >> start:
        return start + (ahead & -ahead).bit_length() - 1
    return (numbers & -numbers).bit_length() - 1


def _each(numbers: int) -> Iterator[int]:
    while numbers:
        low = numbers & -numbers
        yield low.bit_length() - 1
        numbers ^= low
