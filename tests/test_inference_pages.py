"""Pages of keys and values: each belongs to one text, all come back, and who was let in can finish."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipfs_accelerate_node.inference.pages import Pages, pages_for

PAGE_TOKENS = 64
COUNT, MOST, LIMIT = 12, 3, 6 * PAGE_TOKENS


class Texts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(COUNT, PAGE_TOKENS, MOST, LIMIT)
        self.open: dict[int, int] = {}

    @rule(tokens=st.integers(1, LIMIT + 1))
    def comes(self, tokens: int) -> None:
        room = pages_for(tokens, PAGE_TOKENS) <= COUNT - 1 - sum(
            pages_for(held, PAGE_TOKENS) for held in self.open.values()
        )
        number = self.pages.open(tokens)
        assert (number is not None) == (room and len(self.open) < MOST and tokens <= LIMIT)
        if number is not None:
            assert number not in self.open
            assert self.pages.fits(tokens)
            self.open[number] = tokens

    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        if self.open:
            number = data.draw(st.sampled_from(sorted(self.open)))
            self.pages.close(number)
            del self.open[number]

    @invariant()
    def every_page_belongs_to_one(self) -> None:
        held = [page for place in self.pages.places.values() for page in place.pages.tolist()]
        assert len(set(held)) == len(held)
        assert 0 not in held
        assert len(held) + self.pages.free == COUNT - 1
        for number, tokens in self.open.items():
            assert len(self.pages.places[number].pages) * PAGE_TOKENS >= tokens


TestTexts = Texts.TestCase
TestTexts.settings = settings(max_examples=50, deadline=None)


def test_what_can_never_fit_is_said_at_once() -> None:
    pages = Pages(4, PAGE_TOKENS, 8, 100 * PAGE_TOKENS)
    assert pages.fits(3 * PAGE_TOKENS)
    assert not pages.fits(3 * PAGE_TOKENS + 1)
    assert pages.open(3 * PAGE_TOKENS + 1) is None
