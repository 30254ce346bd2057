"""Claims kept: bounded for each key and in all, the newest of a cell, flagged and revoked keys, and how fast."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import DAG_CBOR, DAG_PB, Cid
from ipfs_accelerate_node.peers import results_rows
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.ranking import Hardware, ranked
from ipfs_accelerate_node.peers.results_rows import MAX_PER_KEY
from ipfs_accelerate_node.peers.results_store import ResultsStore
from tests.support.results import MODEL, OTHER_MODEL, claim, key

NOW = 1_800_000_000
GOOD = claim(key(1), created=NOW)


@pytest.fixture
def store(tmp_path: Path) -> ResultsStore:
    return ResultsStore(tmp_path)


def many(count: int, *, keys: int = 1, models: int = 1) -> list[Claim]:
    """As if verified: each of its own cell; signatures are not what a store looks at."""
    roots = [Cid.of(b"%d" % n, DAG_PB) for n in range(models)]
    return [
        replace(
            GOOD,
            envelope_cid=Cid.of(b"e%d" % n, DAG_CBOR),
            record_cid=Cid.of(b"r%d" % n, DAG_CBOR),
            key=b"%036d" % (n % keys),
            model=roots[n // keys % models],
            seq=n,
            created=NOW + n,
            cell=f"cell {n}",
        )
        for n in range(count)
    ]


def test_taken_once_and_read_back(store: ResultsStore, tmp_path: Path) -> None:
    assert store.take([GOOD, GOOD]) == ["accepted", "known"]
    assert store.of(MODEL) == [GOOD]
    assert store.of(OTHER_MODEL) == []
    assert store.has([GOOD.envelope_cid, GOOD.record_cid]) == {GOOD.envelope_cid}
    store.close()
    assert ResultsStore(tmp_path).of(MODEL) == [GOOD]


def test_the_newest_of_a_cell_stays_whatever_comes_first(store: ResultsStore) -> None:
    old, new = GOOD, claim(key(1), created=NOW, seq=2, ns=7)
    assert store.take([old, new, old]) == ["accepted", "accepted", "stale"]
    assert store.of(MODEL) == [new]
    assert store.take([claim(key(1), created=NOW, seq=1, precision="bf16")]) == ["accepted"]  # another cell
    assert store.count() == 2


def test_two_records_under_one_number_are_kept_and_the_key_is_flagged(store: ResultsStore) -> None:
    other = claim(key(1), created=NOW, ns=7)
    assert store.take([GOOD, other]) == ["accepted", "accepted"]
    assert store.standing(GOOD.key).flagged
    assert {c.record_cid for c in store.of(MODEL)} == {GOOD.record_cid, other.record_cid}
    assert ranked(store.of(MODEL), (), flagged={GOOD.key}) == []


def test_a_revoked_key_says_nothing_any_more(store: ResultsStore) -> None:
    store.take([GOOD, claim(key(2), created=NOW)])
    store.note_index(GOOD.key, 9, GOOD.record_cid, revoked=True)
    store.note_index(GOOD.key, 10, GOOD.record_cid, revoked=False)
    assert store.standing(GOOD.key).revoked
    assert [c.signer for c in store.of(MODEL)] == [key(2).peer_id]
    assert store.take([claim(key(1), created=NOW, seq=5)]) == ["revoked"]
    assert GOOD.envelope_cid not in store.envelopes(10)


@pytest.mark.timeout(120)
def test_a_key_that_floods_pushes_out_itself_only(store: ResultsStore) -> None:
    theirs = claim(key(2), created=NOW)
    store.take([theirs])
    began = time.perf_counter()
    flood = many(100_000)
    assert store.take(flood[:95_000]).count("accepted") == MAX_PER_KEY
    for start in range(95_000, len(flood), 500):
        store.take(flood[start : start + 500])
    print(f"\n100,000 records of one key taken in {time.perf_counter() - began:.1f} s")
    assert store.count() == MAX_PER_KEY + 1
    assert min(c.seq for c in store.of(flood[0].model, limit=2_000) if c.key == flood[0].key) == 99_000
    assert theirs in store.of(MODEL, limit=2_000)
    assert len(store.wanted(10_000)) == MAX_PER_KEY + 1  # what was pushed out before it was pinned is forgotten


def test_of_many_keys_the_oldest_make_room(store: ResultsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_rows, "MAX_KEYS", 50)
    monkeypatch.setattr(results_rows, "MAX_CLAIMS", 40)
    store.take(many(200, keys=200))
    assert store.count() == 40
    kept = sorted(c.seq for c in store.of(many(1)[0].model, limit=1_000))
    assert kept == list(range(160, 200))


def test_what_is_to_be_done_in_kubo(store: ResultsStore) -> None:
    store.take([GOOD])
    (keep,) = store.wanted()
    assert (keep.deed, keep.envelope_cid, keep.record_cid) == ("keep", GOOD.envelope_cid, GOOD.record_cid)
    assert store.blocks(GOOD.envelope_cid) == (GOOD.envelope_bytes, GOOD.record_bytes)
    store.done(keep)
    newer = claim(key(1), created=NOW, seq=2)
    store.take([newer])
    assert {(w.deed, w.envelope_cid) for w in store.wanted()} == {
        ("drop", GOOD.envelope_cid),
        ("keep", newer.envelope_cid),
    }
    store.want(GOOD.record_cid)
    assert store.wanted()[0].deed == "publish"


def test_expired_ones_are_not_shown(store: ResultsStore) -> None:
    store.take([GOOD])
    assert store.of(MODEL, now=GOOD.expires) == []


def test_a_file_that_is_no_database_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "results.sqlite").write_bytes(b"not a database" * 100)
    assert ResultsStore(tmp_path).take([GOOD]) == ["accepted"]
    with sqlite3.connect(tmp_path / "results.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert ResultsStore(tmp_path).count() == 0


@pytest.mark.timeout(120)
def test_tp2_a_query_among_100_000(store: ResultsStore) -> None:
    claims = many(100_000, keys=200, models=500)
    for start in range(0, len(claims), 10_000):
        assert set(store.take(claims[start : start + 10_000])) == {"accepted"}
    assert store.count() == 100_000
    roots = [Cid.of(b"%d" % n, DAG_PB) for n in range(500)]
    took_s, computed_s = [], []
    for root in roots:
        began_s, since_s = time.perf_counter(), time.thread_time()
        assert len(store.of(root)) == 200
        took_s.append(time.perf_counter() - began_s)
        computed_s.append(time.thread_time() - since_s)
    p50, p99 = sorted(took_s)[250] * 1e3, sorted(took_s)[495] * 1e3
    cpu = sorted(computed_s)[495] * 1e3
    print(f"\nTP2: 100,000 records, 500 models, query p50 {p50:.1f} ms, p99 {p99:.1f} ms; computing: p99 {cpu:.1f} ms")
    assert cpu <= 20  # other tests run beside this one, so the clock on the wall says nothing of the store


# -- ranking


def test_one_vote_per_key_and_trusted_ones_first() -> None:
    claims = [claim(key(n), created=NOW, ns=1_000_000 * n) for n in (1, 2, 3)]
    claims += [claim(key(1), created=NOW, ns=5, seq=0)]  # older, and does not count
    (result,) = ranked(claims, [claim(key(9), created=NOW, ns=8_000_000)])
    assert (result.keys, result.trusted, result.median_ns) == (3, 0, 4_000_000)
    assert (result.low_ns, result.high_ns, result.own_ns) == (2_000_000, 6_000_000, 16_000_000)
    slow = [claim(key(4), created=NOW, ns=10**9, precision="bf16")]
    by_trust = ranked([*claims, *slow], (), trusted={key(4).peer_id})
    assert [(r.precision, r.trusted) for r in by_trust] == [("bf16", 1), ("f32", 0)]
    (only,) = ranked(claims, (), trusted={key(3).peer_id})
    assert (only.median_ns, only.keys, only.signers[0]) == (6_000_000, 3, key(3).peer_id)


def test_hardware_like_mine() -> None:
    mine = Hardware("A Processor", "x86_64", 8, frozenset({"NVIDIA H100"}))
    assert mine.is_like(GOOD)
    assert not replace(mine, cores=4).is_like(GOOD)
    assert not replace(mine, cpu="Another").is_like(GOOD)
    assert mine.is_like(claim(key(1), created=NOW, device="cuda:0", device_name="NVIDIA H100"))
    assert not mine.is_like(claim(key(1), created=NOW, device="cuda:0", device_name="NVIDIA A10"))
