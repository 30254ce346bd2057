"""What is remembered of sources: across starts, within bounds, and with what effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import IntegrityError, NoSource
from ipfs_accelerate_node.fetch import experience
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.node import Node
from ipfs_accelerate_node.sources import GatewaySource
from ipfs_accelerate_node.sources.source import Abilities
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.source_records import (
    ABILITIES_LAST_S,
    BAD,
    LIE,
    MAX_ROWS,
    MAX_STRIKES,
    Conduct,
    SourceRecord,
)
from tests.support.gateway import FakeGateway, Flip, small_model

URL = "https://gateway.example"
NOW = 1_700_000_000.0


def found(store: Store, source: str = URL, now: float = NOW) -> SourceRecord:
    record = store.source_records.find(source, now)
    assert record is not None
    return record


def good(size: int = 1000) -> Conduct:
    return Conduct(URL, "gateway", bytes=size, seconds=0.5)


def test_a_record_outlives_the_store(cache: Path) -> None:
    with Store.open(cache) as store:
        assert store.source_records.find(URL, NOW) is None
        store.source_records.note([Conduct(URL, "gateway", 1000, 0.5, 0, None, False, True)], NOW)
        store.source_records.note([good(3000)], NOW + 1)
    with Store.open(cache) as store:
        record = found(store)
    assert (record.bytes, record.seconds, record.bytes_per_s) == (4000, 1.0, 4000)
    assert (record.ranges, record.cars, record.seen, record.bad) == (False, True, int(NOW) + 1, False)


def test_a_rebuilt_index_starts_without_experience(cache: Path) -> None:
    with Store.open(cache) as store:
        store.source_records.note([good()], NOW)
    (cache / "index.sqlite").write_bytes(b"no database")
    with Store.open(cache) as store:
        assert store.source_records.find(URL, NOW) is None
        store.source_records.note([good()], NOW)
        assert found(store).bytes == 1000


def test_abilities_are_asked_anew_after_a_while(cache: Path) -> None:
    with Store.open(cache) as store:
        store.source_records.note([Conduct(URL, "gateway", ranges=False, cars=True)], NOW)
        later = NOW + ABILITIES_LAST_S
        store.source_records.note([good()], later - 10)  # did not probe: the old probe's time stands
        assert found(store, now=later - 1).cars is True
        record = found(store, now=later)
        assert (record.ranges, record.cars) == (None, None)


def test_a_lie_makes_a_bad_record_and_good_fetches_mend_it(cache: Path) -> None:
    with Store.open(cache) as store:
        store.source_records.note([Conduct(URL, "gateway", 10, 0.1, rejected=1, fault="hash_mismatch")], NOW)
        assert (found(store).strikes, found(store).bad, found(store).fault) == (LIE, True, "hash_mismatch")
        store.source_records.note([good()], NOW)
        assert found(store).bad is (LIE // 2 >= BAD)
        store.source_records.note([good()], NOW)
        assert (found(store).bad, found(store).rejected, found(store).fault) == (False, 1, None)


def test_one_failure_is_no_bad_record(cache: Path) -> None:
    with Store.open(cache) as store:
        for n in range(1, 2 * MAX_STRIKES):
            store.source_records.note([Conduct(URL, "gateway", fault="stalled")], NOW)
            assert found(store).bad is (n >= BAD)
        assert found(store).strikes == MAX_STRIKES
        store.source_records.note([Conduct(URL, "gateway")], NOW)  # was not asked, or lacked it: nothing to say
        assert found(store).strikes == MAX_STRIKES


def test_rows_are_bounded_and_the_longest_unseen_go(cache: Path) -> None:
    with Store.open(cache) as store:
        for n in range(MAX_ROWS + 5):
            store.source_records.note([Conduct(f"https://{n}.example", "gateway", bytes=1)], NOW + n)
        assert store.source_records.find("https://4.example", NOW) is None
        assert found(store, "https://5.example")
    with Store.open(cache) as store:
        assert store.source_records.find("https://4.example", NOW) is None
        assert found(store, "https://5.example")
        assert found(store, f"https://{MAX_ROWS + 4}.example")


def test_a_failed_fetch_is_remembered_by_its_attempts(cache: Path) -> None:
    liar, slow, lacking = (GatewaySource(f"https://{name}.example") for name in ("liar", "slow", "lacking"))
    slow.abilities = Abilities(ranges=False, cars=True)
    attempts = [
        {"source": liar.name, "kind": "gateway", "code": "hash_mismatch"},
        {"source": slow.name, "kind": "gateway", "code": "stalled"},
        {"source": lacking.name, "kind": "gateway", "code": "not_found"},
        {"source": "kubo", "kind": "kubo", "code": "stalled"},
    ]
    root = Cid.of(b"root")
    lie = IntegrityError(expected=root, actual=Cid.of(b"other"), origin=liar.name)
    lie.detail["attempts"] = attempts
    with Store.open(cache) as store:
        experience.remember(store, [liar, slow, lacking], lie)
        experience.remember(store, [liar], NoSource("nobody", source="none"))
        records = {s.name: store.source_records.find(s.name, NOW) for s in (liar, slow, lacking)}
        assert [(r.rejected, r.strikes, r.fault) for r in records.values() if r] == [
            (1, LIE, "hash_mismatch"),
            (0, 1, "stalled"),
            (0, 0, None),
        ]
        assert experience.by_record(store, [liar, slow, lacking]) == [slow, lacking, liar]
        assert experience.abilities(store, slow.name) == slow.abilities
        assert experience.abilities(store, "https://new.example") == Abilities()
        assert "wrong bytes 1 times" in (experience.told(store, liar.name) or "")
        assert experience.told(store, slow.name) is None
        assert found(store, "kubo").strikes == 0


@pytest.mark.parametrize("name", ["'; DROP TABLE sources; --", "peer:12D3KooW", "x" * 5000])
def test_names_are_only_values(cache: Path, name: str) -> None:
    with Store.open(cache) as store:
        store.source_records.note([Conduct(name, "peer", bytes=7)], NOW)
    with Store.open(cache) as store:
        assert found(store, name).bytes == 7


async def test_a_pin_and_a_plan_make_use_of_it(cache: Path) -> None:
    """A liar is taken down by the pin that met it, asked last by the next, and the plan says so."""
    model = small_model({"weights": bytes(range(200)), "config.json": b"{}"})
    async with FakeGateway({}) as liar, FakeGateway({}) as honest:
        for gateway in (liar, honest):
            gateway.publish(model)
        liar.fault = Flip()
        async with Node(Config(cache=cache, kubo="off", gateways=(liar.url, honest.url))) as node:
            updates = node.updates(node.start_pin(str(model.root), Wish(source=liar.url)))
            error = [job.error async for job in updates][-1]
            assert error is not None
            assert error["code"] == "hash_mismatch"
            survey = await node.plan(str(model.root))
    doubts = {source.source: source.doubt for source in survey.sources}
    assert "wrong bytes 1 times" in (doubts[liar.url] or "")
    assert doubts[honest.url] is None
    assert [source.source for source in survey.sources] == [honest.url, liar.url]


async def test_a_plan_tells_of_a_gateway_that_has_to_search(cache: Path) -> None:
    model = small_model({"weights": bytes(range(200)), "config.json": b"{}"})
    async with FakeGateway({}) as holder, FakeGateway({}) as seeker:
        holder.publish(model)
        async with Node(Config(cache=cache, kubo="off", gateways=(holder.url, seeker.url))) as node:
            survey = await node.plan(str(model.root))
    found = {source.source: source for source in survey.sources}
    assert found[holder.url].doubt is None
    assert found[seeker.url].code == "not_found"
    assert "search" in (found[seeker.url].doubt or "")
