"""The batcher, for random arrivals, lengths, cancels, deadlines and failures of the engine."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ipfs_accelerate_node.inference.batching import Batch, Batcher, Passes, Piece, Work

Content = tuple[int, int]
AGE_S = 5.0
WINDOW = 6


def work(number: int, costs: list[int], *, lane: str = "text", expires: float | None = None) -> Work[Content, Content]:
    return Work(number, [Piece(lane, cost, (number, at)) for at, cost in enumerate(costs)], expires=expires)


class Machine(RuleBasedStateMachine):
    """A device that is given batches and gives them back, or fails; up to two batches are out at a time."""

    live: Bundle[int] = Bundle("live")

    @initialize(
        tokens=st.integers(1, 64), rows=st.integers(1, 9), step=st.sampled_from([1, 8]), packed=st.booleans(),
        overhead=st.integers(0, 32), even=st.booleans(),
    )  # fmt: skip
    def begin(self, tokens: int, rows: int, step: int, packed: bool, overhead: int, even: bool) -> None:
        self.passes = Passes(tokens=tokens, rows=rows, overhead=overhead, step=step, packed=packed, even=even)
        self.batcher: Batcher[Content, Content] = Batcher(self.passes, window=WINDOW, age_s=AGE_S)
        self.now = 0.0
        self.numbers = 0
        self.works: dict[int, Work[Content, Content]] = {}
        self.answered: dict[int, str] = {}
        self.out: list[Batch[Content, Content]] = []
        self.overdue: dict[int, int] = {}  # order of a row over the age limit: batches within which it is served

    @rule(
        target=live,
        costs=st.lists(st.integers(1, 40), min_size=1, max_size=15),
        lane=st.sampled_from(["text", "other"]),
        lasts=st.none() | st.integers(1, 9),
    )
    def arrives(self, costs: list[int], lane: str, lasts: int | None) -> int:
        self.numbers += 1
        expires = None if lasts is None else self.now + lasts
        self.works[self.numbers] = work(self.numbers, costs, lane=lane, expires=expires)
        self.batcher.admit(self.works[self.numbers], self.now)
        return self.numbers

    @rule(passed=st.integers(1, 4))
    def waits(self, passed: int) -> None:
        self.now += passed

    @rule(number=consumes(live))
    def leaves(self, number: int) -> None:
        gone = self.batcher.cancel(number)
        assert (gone is None) == (number in self.answered)
        if gone is not None:
            self.answer(gone, "cancelled")

    @rule()
    def takes(self) -> None:
        if len(self.out) == 2:
            return
        for late in self.batcher.expired(self.now):
            assert late.expires is not None
            assert late.expires <= self.now
            self.answer(late, "expired")
        self.note_overdue()
        waiting = self.batcher.waiting_rows
        batch = self.batcher.take(self.now)
        assert (batch is None) == (waiting == 0)
        if batch is None:
            return
        self.check(batch)
        self.out.append(batch)

    def note_overdue(self) -> None:
        """Rows that are over the age limit from now on, behind so many older ones."""
        waiting = list(self.batcher._members.values())
        self.overdue = {order: left for order, left in self.overdue.items() if order in self.batcher._members}
        for ahead, member in enumerate(waiting):
            if self.now - member.entered > AGE_S:
                self.overdue.setdefault(member.order, 2 * (ahead + 1))

    def check(self, batch: Batch[Content, Content]) -> None:
        costs = [member.piece.cost for member in batch.members]
        assert batch.tokens == sum(costs)
        assert batch.padded == self.passes.padded(len(costs), max(costs), sum(costs)) >= batch.tokens
        assert len(costs) == 1 or (batch.padded <= self.passes.tokens and len(costs) <= self.passes.rows)
        assert self.passes.count(len(costs)) == len(costs)
        assert len({member.piece.lane for member in batch.members}) == 1
        assert not any(member.work.ended for member in batch.members)
        for member in batch.members:
            self.overdue.pop(member.order, None)
        self.overdue = {order: left - 1 for order, left in self.overdue.items()}
        assert all(left > 0 for left in self.overdue.values()), "a row over the age limit was passed over"

    @rule(which=st.integers(0, 1), bad=st.integers(0, 20))
    def computes(self, which: int, bad: int) -> None:
        """bad: the row whose answer is an error, if there is such a row."""
        if which >= len(self.out):
            return
        batch = self.out.pop(which)
        answers: list[Content | Exception] = [member.piece.content for member in batch.members]
        if bad < len(answers):
            answers[bad] = ValueError("this row")
        for done in self.batcher.finish(batch, answers, 0.5):
            if done.error is None:
                assert done.answers == [(done.number, at) for at in range(len(done.pieces))]
                assert done.compute_s > 0
            else:
                assert batch.members[bad].work is done
            self.answer(done, "failed" if done.error else "done")

    @rule(which=st.integers(0, 1))
    def fails(self, which: int) -> None:
        if which >= len(self.out):
            return
        batch = self.out.pop(which)
        struck = {member.work.number for member in batch.live}
        failed = self.batcher.fail(batch, ValueError("the engine"))
        assert {work.number for work in failed} == struck
        for one in failed:
            self.answer(one, "failed")

    def answer(self, done: Work[Content, Content], how: str) -> None:
        assert done.number not in self.answered, "answered twice"
        assert done.ended
        self.answered[done.number] = how

    @rule()
    def drains(self) -> None:
        """Everything that waits is computed, and then nothing is left."""
        while self.out or self.batcher.waiting_rows:
            if self.out:
                self.computes(0, 99)
            else:
                self.takes()
        assert self.answered.keys() == self.works.keys()
        batcher = self.batcher
        assert (len(batcher), batcher.waiting_rows, batcher.waiting_tokens, batcher.busy_rows) == (0, 0, 0, 0)
        assert (batcher._members, batcher._of, batcher._lanes) == ({}, {}, {})

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "batcher"):
            return
        open_works = [one for number, one in self.works.items() if number not in self.answered]
        taken = {(member.work.number, member.index) for batch in self.out for member in batch.members}
        waiting = [
            piece.cost
            for one in open_works
            for at, piece in enumerate(one.pieces)
            if one.answers[at] is None and (one.number, at) not in taken
        ]
        assert len(self.batcher) == len(open_works)
        assert self.batcher.waiting_rows == len(waiting)
        assert self.batcher.waiting_tokens == sum(waiting)
        assert self.batcher.busy_rows == sum(len(batch.members) for batch in self.out)
        assert all(len(own) <= WINDOW for own in self.batcher._of.values())

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.drains()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def taken(batcher: Batcher[Content, Content]) -> list[Content]:
    batch = batcher.take(0.0)
    assert batch is not None
    batcher.finish(batch, [member.piece.content for member in batch.members], 0.1)
    return [member.piece.content for member in batch.members]


def test_one_short_text_is_not_behind_two_thousand() -> None:
    batcher: Batcher[Content, Content] = Batcher(Passes())
    batcher.admit(work(1, [60] * 2048), 0.0)
    taken(batcher)
    batcher.admit(work(2, [12]), 0.0)
    assert (2, 0) in taken(batcher)


def test_a_large_request_goes_on_among_newcomers() -> None:
    """A new request before every batch: the large one still gets its share."""
    batcher: Batcher[Content, Content] = Batcher(Passes(tokens=64, overhead=0), age_s=-1.0)
    batcher.admit(work(1, [60] * 10), 0.0)
    served = 0
    for number in range(2, 24):
        batcher.admit(work(number, [12]), 0.0)
        served += sum(owner == 1 for owner, _ in taken(batcher))
    assert served == 10


def test_equal_lengths_go_together_in_their_order() -> None:
    batcher: Batcher[Content, Content] = Batcher(Passes(tokens=128, overhead=8))
    batcher.admit(work(1, [10, 60, 11, 58]), 0.0)
    assert {at for _, at in taken(batcher)} == {0, 2}
    assert {at for _, at in taken(batcher)} == {1, 3}


def test_without_padding_length_does_not_matter() -> None:
    batcher: Batcher[Content, Content] = Batcher(Passes(tokens=200, packed=True))
    batcher.admit(work(1, [10, 100, 1, 60, 40]), 0.0)
    assert taken(batcher) == [(1, 0), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("cost", [1, 1024, 5000])
def test_a_single_row_goes_at_once(cost: int) -> None:
    batcher: Batcher[Content, Content] = Batcher(Passes())
    batcher.admit(work(1, [cost]), 0.0)
    assert taken(batcher) == [(1, 0)]
    assert batcher.take(0.0) is None


def test_even_counts_of_rows() -> None:
    even = Passes(even=True)
    counts = sorted({even.count(rows) for rows in range(1, 65)})
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
