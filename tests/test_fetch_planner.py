"""Which source fetches which leaves: the pure half of fetching, under random events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf
from ipfs_accelerate_node.fetch.planner import (
    DEAD_S,
    MAX_LEASE_BYTES,
    MIN_LEASE_BYTES,
    RACE_AFTER_S,
    SILENT_S,
    STEAL_AFTER_S,
    SWARM_LAST_PART,
    SWARM_STILL_S,
    Lease,
    Planner,
)
from ipfs_accelerate_node.sources.source import Held

MIB = 1 << 20
STALL_S = 5.0  # after which the fakes below are given up


def file_of(name: str, sizes: list[int]) -> FilePlan:
    leaves, offset = [], 0
    for at, size in enumerate(sizes):
        leaves.append(Leaf(Cid.of(f"{name} {at}".encode()), offset, size))
        offset += size
    return FilePlan(name, Cid.of(name.encode()), offset, tuple(leaves))


def planner(*counts: int, start: int = 0) -> tuple[Planner, list[FilePlan]]:
    files = [file_of(f"file {at}", [MIB] * count) for at, count in enumerate(counts)]
    return Planner(files, [(1 << count) - 1 for count in counts], start=start), files


def numbers(lease: Lease | None) -> range:
    assert lease is not None
    return range(lease.first, lease.stop)


def bring(plan: Planner, lease: Lease, now: float = 0.0) -> None:
    for number in range(lease.first, lease.stop):
        plan.received(lease, MIB, now)
        plan.landed(number)
    plan.give_back(lease)


def test_a_lease_is_in_one_file_and_as_long_as_the_rate_says() -> None:
    plan, files = planner(3, 400)
    plan.join("a")
    assert numbers(plan.next("a", 0.0, None)) == range(3)
    slow, fast = plan.next("a", 0.0, None), plan.next("a", 0.0, 100 * MIB)
    assert slow is not None
    assert slow.file is files[1]
    assert numbers(slow) == range(3, 3 + MIN_LEASE_BYTES // MIB)
    assert len(numbers(fast)) == 75
    assert len(numbers(plan.next("a", 0.0, 1e12))) == MAX_LEASE_BYTES // MIB


def test_a_gap_ends_a_lease() -> None:
    files = [file_of("x", [MIB] * 8)]
    plan = Planner(files, [0b11101101])
    plan.join("a")
    assert numbers(plan.next("a", 0.0, None)) == range(1)
    assert numbers(plan.next("a", 0.0, None)) == range(2, 4)
    assert numbers(plan.next("a", 0.0, None)) == range(5, 8)
    assert plan.next("a", 0.0, None) is None


def test_who_has_not_joined_or_has_nothing_gets_nothing() -> None:
    plan, files = planner(4)
    assert plan.next("a", 0.0, None) is None
    plan.join("a", Held(complete=False, files={files[0].cid: b"\x06"}))
    assert numbers(plan.next("a", 0.0, None)) == range(1, 3)
    assert plan.next("a", 0.0, None) is None
    assert plan.join("a", Held(complete=False, files={files[0].cid: b"\x0e"}))
    assert not plan.join("a", Held(complete=False, files={files[0].cid: b"\x0e"}))
    assert numbers(plan.next("a", 0.0, None)) == range(3, 4)


def test_what_a_source_lacks_goes_to_another() -> None:
    plan, _ = planner(2)
    plan.join("a")
    lease = plan.next("a", 0.0, None)
    assert lease is not None
    plan.lacks("a", 0)
    plan.give_back(lease)
    assert numbers(plan.next("a", 0.0, None)) == range(1, 2)
    plan.join("b")
    assert numbers(plan.next("b", 0.0, None)) == range(1)


def test_a_lease_that_was_given_back_is_free_but_for_what_landed() -> None:
    plan, _ = planner(4)
    plan.join("a")
    lease = plan.next("a", 0.0, None)
    assert lease is not None
    assert plan.landed(0)
    assert not plan.landed(0)
    plan.give_back(lease)
    assert numbers(plan.next("a", 0.0, None)) == range(1, 4)


def test_the_far_end_of_a_slow_lease_is_taken_over_in_proportion() -> None:
    plan, _ = planner(100)
    plan.join("slow")
    plan.join("fast")
    slow = plan.next("slow", 0.0, 1000 * MIB)
    assert slow is not None
    plan.carrying(slow, 0)
    plan.received(slow, 10 * MIB, 1.0)
    plan.carrying(slow, 10)
    taken = plan.next("fast", 1.0, 30 * MIB)
    assert slow.stop == numbers(taken).start
    assert numbers(taken).stop == 100
    assert 60 <= len(numbers(taken)) <= 70  # three of four parts of what is left


def test_a_lease_that_ends_soon_is_left_alone() -> None:
    plan, _ = planner(4)
    plan.join("a")
    plan.join("b")
    lease = plan.next("a", 0.0, None)
    assert lease is not None
    plan.received(lease, 2 * MIB, 0.01)
    plan.carrying(lease, 2)
    assert plan.next("b", 0.01, None) is None
    assert 2 * MIB / (2 * MIB / 0.01) < STEAL_AFTER_S


def test_the_last_leaf_is_raced_once_its_source_is_silent_and_only_by_one() -> None:
    plan, _ = planner(1)
    for holder in "abc":
        plan.join(holder)
    first = plan.next("a", 0.0, None)
    assert first is not None
    plan.carrying(first, 0)
    assert plan.next("b", SILENT_S / 2, None) is None
    raced = plan.next("b", RACE_AFTER_S + 0.1, None)
    assert numbers(raced) == range(1)
    assert raced is not None
    assert raced.race
    plan.received(raced, 1, 1.0)
    assert plan.next("c", DEAD_S - 0.1, None) is None, "on its way twice"
    plan.give_back(first)
    assert numbers(plan.next("c", 9.0, None)) == range(1), "once now"
    plan.landed(0)
    assert plan.complete
    plan.give_back(raced)
    assert plan.next("b", 9.0, None) is None


def test_a_complete_source_is_asked_first_for_what_no_other_has() -> None:
    plan, files = planner(32, start=20)
    plan.join("seed", Held(complete=True, files={}))
    plan.join("peer", Held(complete=False, files={files[0].cid: b"\xff\x00\xff\x00"}))
    assert numbers(plan.next("seed", 0.0, None)) == range(24, 28), (
        "from the starting point on, but not what the peer has"
    )
    assert set(numbers(plan.next("peer", 0.0, None))) < {*range(8), *range(16, 24)}


def test_a_third_one_races_for_what_two_silent_ones_hold() -> None:
    plan, _ = planner(1)
    for name in ("a", "b", "c", "d"):
        plan.join(name)
    first = plan.next("a", 0.0, None)
    assert first is not None
    plan.carrying(first, 0)
    assert plan.next("b", 1.0, None) is not None
    assert plan.next("c", 1.9, None) is None, "one of the two may still come"
    assert numbers(plan.next("c", 2.1, None)) == range(1)
    assert plan.next("d", 2.2, None) is None
    assert plan.next("a", 9.0, None) is None, "it has the leaf on its way already"
    assert numbers(plan.next("d", 9.0, None)) == range(1)
    assert plan.next("d", 20.0, None) is None


def test_a_complete_source_is_not_asked_for_what_the_others_have_soon() -> None:
    plan, files = planner(8)
    plan.join("seed")
    plan.join("peer", Held(complete=False, files={files[0].cid: b"\xff"}))
    assert plan.next("seed", 0.0, None) is None
    plan.leave("peer")
    assert numbers(plan.next("seed", 0.0, None)) == range(4)


def test_the_last_part_is_left_to_those_who_are_still_fetching_while_they_get_more_of_it() -> None:
    plan, files = planner(64)
    plan.join("seed", now=0.0)
    plan.join("peer", Held(complete=False, files={files[0].cid: bytes(8)}), now=0.0)
    now = 0.0
    while (lease := plan.next("seed", now, None)) is not None:
        bring(plan, lease, now)
        now += 0.1
    assert 64 * SWARM_LAST_PART - 4 < plan.missing.bit_count() <= 64 * SWARM_LAST_PART
    plan.join("peer", Held(complete=False, files={files[0].cid: (1 << 63).to_bytes(8, "little")}), now=now + 0.5)
    assert plan.next("seed", now + 0.9 * SWARM_STILL_S, None) is None
    got = plan.next("peer", now + 0.5, None)
    assert (got is not None) == plan.wants(63)
    assert plan.next("seed", now + 0.5 + 2 * SWARM_STILL_S, None) is not None


def test_who_lacks_all_may_be_fetching_too_if_others_ask_us_for_it() -> None:
    """Its first leaves are on their way when it says that it has none."""
    plan, _ = planner(64)
    plan.join("seed")
    plan.join("peer", Held(complete=False, files={}))
    assert numbers(plan.next("seed", 0.0, 64 << 20)) == range(48)
    plan, _ = planner(64)
    plan.join("seed")
    plan.join("peer", Held(complete=False, files={}))
    plan.courted = True
    assert numbers(plan.next("seed", 0.0, 64 << 20)) == range(4)


@pytest.mark.parametrize("start", [0, 5, 63, 64, 10**12])
def test_nodes_that_fetch_together_begin_at_different_places(start: int) -> None:
    plan, files = planner(64, start=start)
    plan.join("seed")
    plan.join("peer", Held(complete=False, files={files[0].cid: bytes(8)}))
    assert numbers(plan.next("seed", 0.0, None)).start == start % 64


# Random sources under random events


@dataclass
class Fake:
    """A source as the planner sees it. pace: bytes in one step; 0: stalls. lies_at: the leaf after which it is found
    out."""

    name: str
    pace: int
    lies_at: int | None = None
    held: int | None = None
    leases: list[Lease] = field(default_factory=list)
    delivered: int = 0
    barred: bool = False


fakes = st.builds(
    Fake,
    name=st.just(""),
    pace=st.sampled_from([0, 1, 2, 7]),
    lies_at=st.none() | st.integers(0, 10),
    held=st.none() | st.integers(0, 2**40 - 1),
)


def as_held(mask: int | None, files: list[FilePlan]) -> Held | None:
    if mask is None:
        return None
    held, at = {}, 0
    for file in files:
        part = mask >> at & ((1 << len(file.leaves)) - 1)
        held[file.cid] = part.to_bytes((len(file.leaves) + 7) // 8, "little")
        at += len(file.leaves)
    return Held(complete=False, files=held)


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    missing=st.integers(0, 2**48 - 1),
    others=st.lists(fakes, max_size=4),
    start=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_every_wanted_leaf_comes_and_hardly_any_twice(
    counts: list[int], missing: int, others: list[Fake], start: int
) -> None:
    """One honest source among any others: the fetch ends, every wanted leaf was landed once, none was on its way more
    than twice at a time, nobody was given what it has not or while it was barred."""
    files = [file_of(f"f{at}", [MIB] * count) for at, count in enumerate(counts)]
    masks, at = [], 0
    for count in counts:
        masks.append(missing >> at & ((1 << count) - 1))
        at += count
    wanted = {number for number in range(at) if missing >> number & 1}
    plan = Planner(files, masks, start=start)
    sources = [Fake("good", 3), *others]
    for number, source in enumerate(sources):
        source.name = f"s{number}"
        plan.join(source.name, as_held(source.held, files))
    landed: Counter[int] = Counter()
    now = 0.0
    for _ in range(400):
        if plan.complete:
            break
        now += 0.1
        for source in sources:
            _step(plan, source, sources, landed, now)
    assert plan.complete
    assert set(landed) == wanted
    assert set(landed.values()) <= {1}


def _step(plan: Planner, source: Fake, sources: list[Fake], landed: Counter[int], now: float) -> None:
    rate = source.delivered * MIB / now if source.delivered else None
    if not source.barred and not source.leases and (lease := plan.next(source.name, now, rate)) is not None:
        source.leases.append(lease)
        plan.carrying(lease, lease.first)
        _check(lease, source, sources, now)
    for lease in source.leases:
        for _ in range(source.pace):
            number = lease.cursor - 1
            if number >= lease.stop:
                break
            if source.lies_at is not None and source.delivered >= source.lies_at:
                source.barred = True
                plan.leave(source.name)
                break
            plan.received(lease, MIB, now)
            source.delivered += 1
            if plan.landed(number):
                landed[number] += 1
            plan.carrying(lease, number + 1)
    source.barred |= any(now - lease.last > STALL_S for lease in source.leases)
    if source.barred:
        plan.leave(source.name)
    for lease in [lease for lease in source.leases if source.barred or lease.cursor - 1 >= lease.stop]:
        source.leases.remove(lease)
        plan.give_back(lease)


def held_by(number: int, sources: list[Fake]) -> list[Lease]:
    return [held for other in sources for held in other.leases if held.first <= number < held.stop]


def _check(lease: Lease, source: Fake, sources: list[Fake], now: float) -> None:
    assert lease.stop > lease.first
    on_the_way = Counter(n for other in sources for held in other.leases for n in range(held.first, held.stop))
    for number in range(lease.first, lease.stop):
        silent = sum(held.last <= now - DEAD_S for held in held_by(number, sources))
        assert on_the_way[number] <= 2 + silent
        assert len({held.holder for held in held_by(number, sources)}) == on_the_way[number]
        assert source.held is None or source.held >> number & 1
    assert lease.first >= lease.base
    assert lease.stop <= lease.base + len(lease.file.leaves)
