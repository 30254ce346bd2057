"""Which sources may be asked, and what became of each: pure decisions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.errors import IntegrityError, NodeError, NoSource, SourceUnavailable, exit_code
from ipfs_accelerate_node.fetch.schedule import (
    MAX_LACKS_IN_A_ROW,
    MAX_RESTS,
    NEW_CHANCE_S,
    PAUSES_S,
    WINDOW,
    Schedule,
)
from ipfs_accelerate_node.sources.source import Held

ROOT = Cid.of(b"root")
OTHER = Cid.of(b"other")


class Named:
    """A source that is only a name."""

    kind = "gateway"
    ranges = False

    def __init__(self, name: str) -> None:
        self.name = name

    async def read_block(self, cid: Cid) -> bytes:
        raise NotImplementedError

    def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    async def held(self, root: Cid) -> Held | None:
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


def ready(plan: Schedule, now: float = 0.0) -> list[str]:
    return [standing.source.name for standing in plan.ready(now)]


def test_all_sources_may_be_asked_at_once_in_the_order_given() -> None:
    assert ready(schedule("a", "b", "c")) == ["a", "b", "c"]


def test_a_source_may_join_later() -> None:
    plan = schedule("a")
    plan.join(Named("b"))
    assert ready(plan) == ["a", "b"]


def test_without_sources_nobody_is_asked() -> None:
    plan = schedule()
    assert not plan.rouse()
    error = plan.verdict(ROOT)
    assert isinstance(error, NoSource)
    assert (error.code, exit_code(error)) == ("no_source", 5)


@pytest.mark.parametrize("code", ["truncated", "source_unavailable", "kubo_unavailable"])
def test_who_breaks_off_without_ever_delivering_tries_once_more(code: str) -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.failed(a, ROOT, fault(code), 0.0)
    assert ready(plan) == ["a"]
    plan.failed(a, ROOT, fault(code), 0.0)
    assert ready(plan) == []
    assert plan.rests_until(0.0) is None
    assert not plan.rouse(), "nobody made progress since"


@pytest.mark.parametrize("code", ["truncated", "source_unavailable", "kubo_unavailable"])
def test_who_had_delivered_tries_again_after_growing_pauses(code: str) -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.delivered(a, 10)
    now = 0.0
    for pause_s in PAUSES_S:
        plan.failed(a, ROOT, fault(code), now)
        assert ready(plan, now) == ([] if pause_s else ["a"])
        now += pause_s
        assert ready(plan, now) == ["a"]
    plan.failed(a, ROOT, fault(code), now)
    assert a.tired


def test_a_delivery_starts_the_pauses_anew() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    for _ in range(20):
        plan.delivered(a, 10)
        plan.failed(a, ROOT, fault("truncated"), 0.0)
        assert ready(plan) == ["a"]


def test_several_failures_of_one_moment_are_one() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.delivered(a, 10)
    plan.failed(a, ROOT, fault("truncated"), 0.0)
    for _ in range(9):
        plan.failed(a, OTHER, fault("truncated"), 0.0)
    assert not a.barred


def test_progress_of_one_is_a_new_chance_for_the_tired() -> None:
    plan = schedule("a", "b")
    a, b = plan.standings
    for _ in range(2):
        plan.failed(a, ROOT, fault("truncated"), 0.0)
    assert ready(plan) == ["b"]
    assert not plan.rouse()
    plan.delivered(b, 10)
    assert ready(plan, NEW_CHANCE_S / 2) == ["b"], "not while others work …"
    assert ready(plan, NEW_CHANCE_S) == ["a", "b"], "… but after a while"


def test_the_tired_are_roused_when_nobody_else_can_help() -> None:
    plan = schedule("a", "b")
    a, b = plan.standings
    for _ in range(2):
        plan.failed(a, ROOT, fault("truncated"), 0.0)
    plan.delivered(b, 10)
    plan.rejected(b, wrong())
    assert plan.rouse()
    assert ready(plan) == ["a"]
    for _ in range(2):
        plan.failed(a, ROOT, fault("truncated"), 0.0)
    assert not plan.rouse()


@pytest.mark.parametrize(
    "code", ["stalled", "tls_error", "bad_source", "address_refused", "redirect_refused", "auth_required"]
)
def test_some_failures_are_final(code: str) -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.delivered(a, 10)
    plan.failed(a, ROOT, fault(code), 0.0)
    assert a.barred
    assert not plan.rouse()
    assert ready(plan, 1e9) == []


def test_wrong_bytes_bar_a_source_also_when_it_delivers_on() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.rejected(a, wrong())
    plan.delivered(a, 10)
    plan.renew()
    assert ready(plan, 1e9) == []
    assert a.share.rejected == 1


def test_lacking_a_block_is_no_failure_but_lacking_many_is() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    for i in range(MAX_LACKS_IN_A_ROW - 1):
        plan.failed(a, Cid.of(bytes([i])), fault("not_found"), 0.0)
    assert ready(plan) == ["a"]
    plan.delivered(a, 1)
    for i in range(MAX_LACKS_IN_A_ROW):
        plan.failed(a, Cid.of(bytes([100 + i])), fault("blocked"), 0.0)
    assert ready(plan) == []


def test_a_pause_that_was_asked_for_is_kept_and_the_window_halved() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.failed(a, ROOT, fault("rate_limited", retry_after_s=5.0), 100.0)
    plan.failed(a, OTHER, fault("rate_limited", retry_after_s=7.0), 100.0)  # of the same window: the same pause
    assert a.window == WINDOW // 2
    assert ready(plan, 104.9) == []
    assert plan.rests_until(101.0) == 105.0
    assert a.state(101.0) == "resting"
    assert ready(plan, 105.0) == ["a"]


@pytest.mark.parametrize("wait_s", [61.0, 1e9, None])
def test_who_wants_a_longer_pause_is_skipped(wait_s: float | None) -> None:
    plan = schedule("a")
    (a,) = plan.standings
    plan.failed(a, ROOT, fault("rate_limited", retry_after_s=wait_s), 0.0)
    assert ready(plan) == []
    assert plan.rests_until(0.0) is None


def test_pauses_in_a_row_are_bounded() -> None:
    plan = schedule("a")
    (a,) = plan.standings
    for _ in range(MAX_RESTS):
        plan.failed(a, ROOT, fault("rate_limited", retry_after_s=0.0), 0.0)
        assert ready(plan) == ["a"]
    plan.failed(a, ROOT, fault("rate_limited", retry_after_s=0.0), 0.0)
    assert ready(plan) == []


def verdict(*errors: NodeError) -> NodeError:
    plan = schedule(*(f"http://{i}" for i in range(len(errors))))
    for standing, error in zip(plan.standings, errors, strict=True):
        if isinstance(error, IntegrityError):
            plan.rejected(standing, error)
        else:
            assert isinstance(error, SourceUnavailable)
            plan.failed(standing, ROOT, error, 0.0)
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
