"""Continuous batching over a model that can be told from its tokens: every text becomes what it would be alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed, PayloadTooLarge, Unavailable
from ipfs_accelerate_node.inference.sequences import Scored, scored
from ipfs_accelerate_node.inference.writing import READ_TOKENS, Text, Turn, Writer

VOCABULARY = 17
ROOM, MOST, LONGEST = 60, 3, 50


def following(ids: Sequence[int]) -> int:
    """What this model writes after these tokens."""
    return (sum(ids) * 31 + len(ids)) % VOCABULARY


class Counted:
    """Sequences that check what they are asked. broken: what the next call raises. odd: a place whose scores are no
    numbers."""

    most = MOST

    def __init__(self) -> None:
        self.rows: dict[int, tuple[list[int], int]] = {}
        self.broken: InferenceFailed | None = None
        self.odd: int | None = None
        self.longest_step = 0

    def fits(self, tokens: int) -> bool:
        return tokens <= LONGEST

    def open(self, tokens: int) -> int | None:
        if len(self.rows) >= MOST or sum(limit for _, limit in self.rows.values()) + tokens > ROOM:
            return None
        place = next(number for number in range(MOST) if number not in self.rows)
        self.rows[place] = [], tokens
        return place

    def close(self, place: int) -> None:
        del self.rows[place]

    def read(self, place: int, ids: Sequence[int], *, scores: bool) -> Scored:
        assert ids
        return self._more([place], [ids], [0] if scores else [])

    def step(self, places: Sequence[int], tokens: Sequence[int], *, scores: Sequence[int] = ()) -> Scored:
        assert len(set(places)) == len(places)
        self.longest_step = max(self.longest_step, len(places))
        return self._more(places, [[token] for token in tokens], scores)

    def _more(self, places: Sequence[int], given: Sequence[Sequence[int]], wanted: Sequence[int]) -> Scored:
        broken, self.broken = self.broken, None
        if broken is not None:
            raise broken
        found = np.zeros((len(places), VOCABULARY), dtype=np.float32)
        for row, (place, ids) in enumerate(zip(places, given, strict=True)):
            tokens, limit = self.rows[place]
            tokens += ids
            assert len(tokens) <= limit
            found[row, following(tokens)] = 1
            if place == self.odd:
                found[row] = np.nan
        return scored(found, wanted)


class Script:
    def __init__(self, prompt: Sequence[int], count: int, *, best: bool) -> None:
        self.prompt = list(prompt)
        self.limit = len(prompt) + count
        self.best = best
        self.answer: list[int] = []

    def choose(self, scores: NDArray[np.float32]) -> int:
        assert not self.best
        return int(scores.argmax())

    def add(self, token: int) -> bool:
        self.answer.append(token)
        return len(self.prompt) + len(self.answer) == self.limit

    def alone(self) -> list[int]:
        ids = list(self.prompt)
        while len(ids) < self.limit:
            ids.append(following(ids))
        return ids[len(self.prompt) :]


class Requests(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.sequences = Counted()
        self.writer = Writer(self.sequences)
        self.waiting: dict[Text, Script] = {}
        self.number = 0

    @rule(
        prompts=st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=30), min_size=1, max_size=4),
        count=st.integers(1, 25),
        best=st.booleans(),
    )
    def comes(self, prompts: list[list[int]], count: int, best: bool) -> None:
        self.number += 1
        scripts = [Script(prompt, count, best=best) for prompt in prompts]
        texts = [Text(self.number, index, script) for index, script in enumerate(scripts)]
        self.waiting.update(zip(texts, scripts, strict=True))
        self.writer.add(texts)

    @rule(data=st.data())
    def nobody_wants_it(self, data: st.DataObject) -> None:
        job = data.draw(st.integers(1, max(1, self.number)))
        there = [text for text in self.waiting if text.job == job]
        assert self.writer.drop(job) == bool(there)
        for text in there:
            del self.waiting[text]

    @precondition(lambda self: self.writer.busy)
    @rule()
    def turn(self) -> None:
        self.done(self.writer.turn(), broken=False)

    @precondition(lambda self: self.writer.busy)
    @rule()
    def the_engine_fails(self) -> None:
        self.sequences.broken = InferenceFailed("broken")
        self.done(self.writer.turn(), broken=True)
        self.sequences.broken = None

    @precondition(lambda self: self.sequences.rows)
    @rule(data=st.data())
    def scores_are_no_numbers(self, data: st.DataObject) -> None:
        self.sequences.odd = data.draw(st.sampled_from(sorted(self.sequences.rows)))
        self.done(self.writer.turn(), broken=True)
        self.sequences.odd = None

    def done(self, turn: Turn, *, broken: bool) -> None:
        assert len(set(turn.grown)) == len(turn.grown)  # a token a turn, whoever comes and goes
        for text in turn.done:
            script = self.waiting.pop(text)
            if isinstance(text.error, PayloadTooLarge):
                assert script.limit > LONGEST
            elif text.error is not None:
                assert broken
            else:
                assert script.answer == script.alone()
                assert text.tokens == len(script.answer)

    @invariant()
    def nothing_is_left(self) -> None:
        if not hasattr(self, "writer"):
            return
        assert self.writer.busy == bool(self.waiting)
        assert len(self.sequences.rows) == self.writer.writing
        assert self.writer.waiting + self.writer.writing == len(self.waiting)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.writer.busy:
                break
            self.done(self.writer.turn(), broken=False)
        assert not self.waiting
        assert not self.sequences.rows


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_texts_of_several_requests_go_through_together() -> None:
    sequences = Counted()
    writer = Writer(sequences)
    scripts = [Script([number], 10, best=True) for number in range(3)]
    writer.add([Text(1, 0, scripts[0])])
    for _ in range(3):
        writer.turn()
    writer.add([Text(2, 0, scripts[1]), Text(3, 0, scripts[2])])
    turns = 0
    while writer.busy:
        writer.turn()
        turns += 1
    assert [script.answer for script in scripts] == [script.alone() for script in scripts]
    assert sequences.longest_step == 3
    assert turns == 10


def test_a_long_prompt_is_read_piece_by_piece_while_others_are_written() -> None:
    class Large(Counted):
        def fits(self, tokens: int) -> bool:
            return True

        def open(self, tokens: int) -> int | None:
            self.rows[len(self.rows)] = [], tokens
            return len(self.rows) - 1

        def close(self, place: int) -> None:
            pass

    writer = Writer(Large())
    short, long = Script([1], 20, best=True), Script([2] * (3 * READ_TOKENS + 1), 2, best=True)
    writer.add([Text(1, 0, short)])
    writer.turn()
    writer.add([Text(2, 0, long)])
    for count in range(2, 5):
        writer.turn()
        assert (len(short.answer), long.answer) == (count, [])
    writer.turn()
    assert len(long.answer) == 1


def test_who_waits_is_not_overtaken() -> None:
    writer = Writer(Counted())
    first, wide, small = (Script([1] * size, 20, best=True) for size in (20, 30, 1))
    writer.add([Text(1, 0, first), Text(2, 0, wide), Text(3, 0, small)])
    writer.turn()
    assert (writer.writing, writer.waiting) == (1, 2)  # the small one would fit
    while writer.busy:
        writer.turn()
    assert small.answer == small.alone()


def test_a_text_for_which_there_is_no_memory_fails_alone() -> None:
    class Full(Counted):
        def open(self, tokens: int) -> int | None:
            if tokens == LONGEST:
                raise Unavailable("not enough memory", code="out_of_memory")
            return super().open(tokens)

    writer = Writer(Full())
    wide, small = Script([1], LONGEST - 1, best=True), Script([1], 5, best=True)
    texts = [Text(1, 0, wide), Text(2, 0, small)]
    writer.add(texts)
    while writer.busy:
        writer.turn()
    assert texts[0].error is not None
    assert texts[0].error.code == "out_of_memory"
    assert small.answer == small.alone()
