"""Which source gets the next turn: the pure half of fetching."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NoSource, SourceUnavailable, exit_code
from ipfs_accelerate_node.fetch.schedule import MAX_LACKS_IN_A_ROW, MAX_RESTS, WINDOW, Rest, Schedule, Standing, Turn

ROOT = Cid.of(b"root")
OTHER = Cid.of(b"other")


class Named:
    """A source that is only a name."""

    kind = "gateway"

    def __init__(self, name: str) -> None:
        self.name = name

    async def read_block(self, cid: Cid) -> bytes:
        raise NotImplementedError

    async def settled(self, cids: Sequence[Cid]) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


def schedule(*names: str) -> Schedule:
    return Schedule([Named(name) for name in names])


def fault(code: str, cid: Cid = ROOT, retry_after_s: float | None = None) -> SourceUnavailable:
    return SourceUnavailable(f"{code}!", source="x", cid=cid, code=code, retry_after_s=retry_after_s)


def wrong(cid: Cid = ROOT) -> IntegrityError:
    return IntegrityError(expected=cid, actual=OTHER, origin="x")


def turn(plan: Schedule, now: float = 0.0) -> Standing:
    step = plan.next(now)
    assert isinstance(step, Turn)
    return step.standing


def test_sources_have_their_turns_in_the_order_given() -> None:
    plan = schedule("a", "b", "c")
    seen = []
    while isinstance(step := plan.next(0.0), Turn):
        seen.append(step.standing.source.name)
        plan.ended(step.standing)
    assert seen == ["a", "b", "c"]


def test_without_sources_nobody_is_asked() -> None:
    plan = schedule()
    assert plan.next(0.0) is None
    error = plan.verdict(ROOT)
    assert isinstance(error, NoSource)
    assert (error.code, exit_code(error)) == ("no_source", 5)


def test_progress_of_one_is_a_new_chance_for_those_that_lacked_something() -> None:
    plan = schedule("a", "b")
    first = turn(plan)
    plan.failed(first, ROOT, fault("not_found"), 0.0)
    plan.ended(first)
    second = turn(plan)
    assert second.source.name == "b"
    plan.delivered(second, 10)
    plan.ended(second)
    assert turn(plan).source.name == "a"


@pytest.mark.parametrize("code", ["truncated", "source_unavailable", "kubo_unavailable"])
def test_who_broke_off_gets_another_turn_after_progress_and_one_without(code: str) -> None:
    plan = schedule("a")
    for progress in (True, True, False, True, False):
        standing = turn(plan)
        if progress:
            plan.delivered(standing, 10)
        plan.failed(standing, ROOT, fault(code), 0.0)
        assert standing.over
        plan.ended(standing)
    standing = turn(plan)
    plan.failed(standing, ROOT, fault(code), 0.0)
    plan.ended(standing)
    assert plan.next(0.0) is None


def test_the_next_source_comes_before_the_second_chance() -> None:
    plan = schedule("a", "b")
    first = turn(plan)
    plan.failed(first, ROOT, fault("truncated"), 0.0)
    plan.ended(first)
    assert turn(plan).source.name == "b"


@pytest.mark.parametrize(
    "code", ["stalled", "tls_error", "bad_source", "address_refused", "redirect_refused", "auth_required"]
)
def test_some_failures_are_final(code: str) -> None:
    plan = schedule("a")
    standing = turn(plan)
    plan.delivered(standing, 10)
    plan.failed(standing, ROOT, fault(code), 0.0)
    plan.ended(standing)
    assert standing.barred
    assert plan.next(0.0) is None


def test_wrong_bytes_bar_a_source_also_when_it_delivers_on() -> None:
    plan = schedule("a")
    standing = turn(plan)
    plan.rejected(standing, wrong())
    plan.delivered(standing, 10)
    plan.ended(standing)
    assert plan.next(0.0) is None
    assert standing.share.rejected == 1


def test_lacking_a_block_does_not_end_the_turn_but_lacking_many_does() -> None:
    plan = schedule("a")
    standing = turn(plan)
    for i in range(MAX_LACKS_IN_A_ROW - 1):
        plan.failed(standing, Cid.of(bytes([i])), fault("not_found"), 0.0)
    assert not standing.over
    plan.delivered(standing, 1)
    for i in range(MAX_LACKS_IN_A_ROW):
        plan.failed(standing, Cid.of(bytes([100 + i])), fault("blocked"), 0.0)
    assert standing.over


def test_a_pause_that_was_asked_for_is_kept_and_the_window_halved() -> None:
    plan = schedule("a")
    standing = turn(plan)
    plan.failed(standing, ROOT, fault("rate_limited", retry_after_s=5.0), 100.0)
    plan.failed(standing, OTHER, fault("rate_limited", retry_after_s=7.0), 100.0)  # of the same window: the same pause
    plan.ended(standing)
    assert standing.window == WINDOW // 2
    assert plan.next(101.0) == Rest(4.0)
    assert turn(plan, 105.0) is standing


def test_others_are_asked_while_one_rests() -> None:
    plan = schedule("a", "b")
    first = turn(plan)
    plan.failed(first, ROOT, fault("rate_limited", retry_after_s=5.0), 0.0)
    plan.ended(first)
    second = turn(plan, 0.0)
    assert second.source.name == "b"
    plan.ended(second)
    assert plan.next(1.0) == Rest(4.0)


@pytest.mark.parametrize("wait_s", [61.0, 1e9, None])
def test_who_wants_a_longer_pause_is_skipped(wait_s: float | None) -> None:
    plan = schedule("a")
    standing = turn(plan)
    plan.failed(standing, ROOT, fault("rate_limited", retry_after_s=wait_s), 0.0)
    plan.ended(standing)
    assert plan.next(0.0) is None


def test_pauses_in_a_row_are_bounded() -> None:
    plan = schedule("a")
    for _ in range(MAX_RESTS):
        standing = turn(plan)
        plan.failed(standing, ROOT, fault("rate_limited", retry_after_s=0.0), 0.0)
        plan.ended(standing)
    standing = turn(plan)
    plan.failed(standing, ROOT, fault("rate_limited", retry_after_s=0.0), 0.0)
    plan.ended(standing)
    assert plan.next(0.0) is None


def verdict(*errors: NodeError) -> NodeError:
    plan = schedule(*(f"http://{i}" for i in range(len(errors))))
    for error in errors:
        standing = turn(plan)
        if isinstance(error, IntegrityError):
            plan.rejected(standing, error)
        else:
            assert isinstance(error, SourceUnavailable)
            plan.failed(standing, ROOT, error, 0.0)
        plan.ended(standing)
    return plan.verdict(ROOT)


@pytest.mark.parametrize(
    ("errors", "code", "exits"),
    [
        ([fault("truncated")], "truncated", 5),
        ([fault("stalled")], "stalled", 5),
        ([fault("tls_error")], "tls_error", 5),
        ([fault("not_found")], "not_found", 5),
        ([fault("not_found", OTHER)], "missing_block", 5),
        ([fault("truncated"), fault("stalled")], "no_source", 5),
        ([wrong()], "hash_mismatch", 4),
        ([fault("not_found"), wrong(), fault("stalled")], "hash_mismatch", 4),
    ],
)
def test_the_verdict_names_every_attempt(errors: list[NodeError], code: str, exits: int) -> None:
    error = verdict(*errors)
    assert (error.code, exit_code(error)) == (code, exits)
    attempts = error.detail["attempts"]
    assert isinstance(attempts, list)
    assert [a["source"] for a in attempts] == [f"http://{i}" for i in range(len(errors))]
    assert [a["code"] for a in attempts] == [e.code for e in errors]
    assert all(a["reason"] for a in attempts)
