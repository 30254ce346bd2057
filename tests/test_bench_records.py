"""Benchmark records: what is in them, what is not, and that nothing else is believed (bad input, table E)."""

from __future__ import annotations

import getpass
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.benchmarks.cells import Same
from ipfs_accelerate_node.benchmarks.figures import FIRST_TOKEN, figures, spread
from ipfs_accelerate_node.benchmarks.schema import MAX_TEXT, clean, read_benchmark
from ipfs_accelerate_node.benchmarks.trial import Agreement
from ipfs_accelerate_node.benchmarks.workload import inputs
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError
from ipfs_accelerate_node.inference.model import Text
from ipfs_accelerate_node.records.canonical import MAX_BYTES, Value, decode, encode
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, INDEX_PREFIX, open_envelope, seal
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.store.types import SourceShare
from tests.support.benchmarks import KEY, MEASURED, MODEL, ROOT, SMALL, STORED, examples, record_of

NOW = 1_800_000_000
SEALED = seal(record_of(), KEY, BENCH_PREFIX)


def test_the_record_says_what_ran() -> None:
    agreed = Agreement(0.9999996, 1.0, 0, Same(19, 20))
    record = record_of(agreement=agreed)
    assert record["model"] == ROOT
    assert (record["v"], record["status"], record["engine"], record["device"]) == (2, "REAL", "torch", "cpu")
    assert record["hub"] == {"repo": "org/name", "commit": "0" * 40}
    assert record["workload"] == {
        "name": "encode-2x6", "batch": 2, "length": 6, "warmup": 1, "repeats": 3, "seed": 7, "tokens": 12,
        "truncated": 0,
    }  # fmt: skip
    assert (record["samples_ns"], record["work"], record["unit"]) == (
        [3_000_000, 1_000_000, 2_500_000],
        [12] * 3,
        "tokens",
    )
    assert (record["load_ms"], record["memory_peak_bytes"], record["seq"]) == (1250, 400_000_000, 1)
    assert record["expires"] == NOW + 180 * 24 * 3600
    assert record["agreement"] == {
        "min_ppm": 999_999, "mean_ppm": 1_000_000, "moved": 0, "greedy_same": 19, "greedy_of": 20,
    }  # fmt: skip
    assert record["state"] == {
        "busy": False, "cores": 4, "load_before_milli": 500, "load_during_milli": 1250, "others_milli": 250,
        "governors": ["performance"], "slowed": [], "disturbed": 0, "throttled": 0,
    }  # fmt: skip
    machine = record["machine"]
    assert isinstance(machine, dict)
    assert set(machine) == {"cpu", "cores", "memory_bytes", "system", "arch", "python", "threads"}
    read = read_benchmark(record)
    assert (read.root, read.workload, read.parameters["batch"], read.hub) == (
        ROOT,
        "encode-2x6",
        2,
        ("org/name", "0" * 40),
    )
    assert (read.samples_ns, read.busy) == (MEASURED.samples_ns, False)


def test_energy_and_a_slowed_card_are_told_where_they_are_known() -> None:
    state = replace(
        MEASURED.state, energy_mj=1500, energy_by="nvml", slowed=("power_cap",), others=None, throttled=None
    )
    said = record_of(replace(MEASURED, state=state))["state"]
    assert isinstance(said, dict)
    assert (said["energy_mj"], said["energy_by"], said["slowed"]) == (1500, "nvml", ["power_cap"])
    assert not {"others_milli", "throttled"} & set(said)


async def test_the_record_names_nobody(tmp_path: Path) -> None:
    share = SourceShare("http://192.0.2.7:8090", "peer", 5, 1, 0)
    block = encode(record_of(sources=(share,), stored=replace(STORED, path=tmp_path / "x", names=("secret-name",))))
    names = (
        socket.gethostname(),
        getpass.getuser(),
        str(tmp_path),
        str(Path.home()),
        "127.0.0.1",
        "192.0.2.7",
        "secret",
    )
    prompts = [item.text for item in await inputs(SMALL, MODEL, examples) if isinstance(item, Text)]
    assert prompts
    for text in (*names, *prompts):
        assert text.encode() not in block, text


@pytest.mark.parametrize("stored", [replace(STORED, public=False), None])
def test_a_private_repository_is_not_named(stored: Any) -> None:
    assert "hub" not in record_of(stored=stored)


# -- one value, one encoding


def whole(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and whole(item) for key, item in value.items())
    return all(map(whole, value)) if isinstance(value, list) else isinstance(value, int | str | Cid)


numbers = st.integers(1, 10**13)
texts = st.text(max_size=MAX_TEXT).map(clean)


@given(samples=st.lists(numbers, min_size=1, max_size=40), name=texts, version=texts, seq=st.integers(0, 2**53))
def test_a_second_encoding_gives_the_same_bytes(samples: list[int], name: str, version: str, seq: int) -> None:
    measured = replace(
        MEASURED,
        samples_ns=tuple(samples),
        work=(1,) * len(samples),
        phases_ns={name: tuple(samples)},
        model=replace(MODEL, versions={version: name}),
    )
    record = record_of(measured, seq=seq, device_name=name)
    assert whole(record)
    block = encode(record)
    again = decode(block)
    assert isinstance(again, dict)
    assert encode(again) == block
    assert libipld.encode_dag_cbor(libipld.decode_dag_cbor(block)) == block
    assert read_benchmark(again) == read_benchmark(record)
    assert read_benchmark(again).samples_ns == tuple(samples)


@given(st.integers(0, 8 * len(SEALED.record_bytes) - 1))
def test_any_flipped_bit_of_a_record_is_refused(bit: int) -> None:
    record = bytearray(SEALED.record_bytes)
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError) as caught:
        open_envelope(SEALED.envelope_bytes, bytes(record), BENCH_PREFIX, now=NOW)
    assert caught.value.code == "hash_mismatch"


@given(st.integers(0, 8 * len(SEALED.envelope_bytes) - 1))
def test_any_flipped_bit_of_an_envelope_is_refused(bit: int) -> None:
    envelope = bytearray(SEALED.envelope_bytes)
    envelope[bit // 8] ^= 1 << bit % 8
    with pytest.raises((BadContent, IntegrityError)) as caught:
        open_envelope(bytes(envelope), SEALED.record_bytes, BENCH_PREFIX, now=NOW)
    assert caught.value.code in ("bad_record", "bad_signature", "hash_mismatch")


# -- table E


def test_oversized_foreign_topic_wrong_key_and_wrong_times() -> None:
    """E1, E2, E5, E10."""
    opened = partial(open_envelope, SEALED.envelope_bytes, SEALED.record_bytes)
    assert opened(BENCH_PREFIX, now=NOW, key=KEY.public).record == record_of()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: open_envelope(SEALED.envelope_bytes, bytes(MAX_BYTES + 1), BENCH_PREFIX), "bad_record"),
        (lambda: opened(INDEX_PREFIX, now=NOW), "bad_signature"),
        (lambda: opened(BENCH_PREFIX, now=NOW, key=NodeKey(bytes(32)).public), "bad_signature"),
        (lambda: opened(BENCH_PREFIX, now=NOW - 600), "record_from_future"),
        (lambda: opened(BENCH_PREFIX, now=NOW + 181 * 24 * 3600), "record_expired"),
        (lambda: opened(BENCH_PREFIX, now=4_070_908_800), "record_expired"),
    ]
    for attempt, code in cases:
        with pytest.raises(BadContent) as caught:
            attempt()
        assert caught.value.code == code
    opened(BENCH_PREFIX, now=NOW - 299)
    other = seal(record_of(seq=2), KEY, BENCH_PREFIX)
    with pytest.raises(IntegrityError):
        open_envelope(SEALED.envelope_bytes, other.record_bytes, BENCH_PREFIX)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e308, 0.5])
def test_no_float_has_a_place_in_a_record(number: float) -> None:
    """E6: neither written nor read."""
    with pytest.raises(BadContent):
        encode({**record_of(), "samples_ns": [number]})  # type: ignore[list-item]
    with pytest.raises(BadContent):
        decode(b"\xa1\x61x\xfb" + struct.pack(">d", number))


BIDI, ANSI, LONG = "cpu\u202egnp", "\x1b[31mcpu", "x" * (1 << 20)

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("E6 zero", {"samples_ns": [0, 1, 2]}, "bad_record"),
    ("E6 negative", {"samples_ns": [-1_000_000, 1, 2]}, "bad_record"),
    ("E6 longer than a day", {"samples_ns": [1, 2, 10**18]}, "bad_record"),
    ("E6 count", {"samples_ns": [1, 2]}, "bad_record"),
    ("E6 none", {"samples_ns": []}, "bad_record"),
    ("E6 a truth", {"samples_ns": [True, 1, 2]}, "bad_record"),
    ("E6 no list", {"samples_ns": 3}, "bad_record"),
    ("E6 work", {"work": [1]}, "bad_record"),
    ("E6 less than no work", {"work": [1, 1, -1]}, "bad_record"),
    ("E6 phases", {"phases_ns": {"loading": [1]}}, "bad_record"),
    ("E6 phases of no map", {"phases_ns": [1]}, "bad_record"),
    ("E6 batch", {"workload": {"name": "x", "repeats": 3, "batch": -1}}, "bad_record"),
    ("E6 memory", {"memory_peak_bytes": -1}, "bad_record"),
    ("E6 agreement", {"agreement": {"min_ppm": "1"}}, "bad_record"),
    ("E7 mock engine", {"engine": "mock"}, "mock_record"),
    ("E7 mock status", {"status": "MOCK"}, "mock_record"),
    ("E7 no root", {"model": "bafy"}, "bad_record"),
    ("E9 ANSI", {"device": ANSI}, "bad_record"),
    ("E9 bidi", {"device_name": BIDI}, "bad_record"),
    ("E9 long", {"task": LONG}, "bad_record"),
    ("E9 key", {"versions": {ANSI: "1"}}, "bad_record"),
    ("E9 phase", {"phases_ns": {BIDI: [1, 2, 3]}}, "bad_record"),
    ("E9 machine", {"machine": {"cpu": LONG}}, "bad_record"),
    ("E9 many", {"versions": {str(n): "1" for n in range(65)}}, "bad_record"),
    ("E9 hub", {"hub": {"repo": ANSI, "commit": "0"}}, "bad_record"),
    ("E11 version", {"v": 3}, "record_version"),
    ("E11 first version", {"v": 1}, "record_version"),
    ("E11 truth", {"v": True}, "record_version"),
    ("E11 schema", {"schema": "another"}, "bad_record"),
    ("busy", {"state": {"busy": True}}, "machine_busy"),
    ("says nothing of busy", {"state": {}}, "bad_record"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_makes_no_sense_is_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(BadContent) as caught:
        read_benchmark({**record_of(), **change})
    assert caught.value.code == code
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.just(ROOT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(record_of())), inside=st.booleans(), value=anything, at=st.integers(0, 20))
def test_whatever_stands_in_a_field_is_read_or_refused(field: str, inside: bool, value: Any, at: int) -> None:
    record = record_of(agreement=Agreement(1.0, 1.0, None, None))
    found = record[field]
    if inside and isinstance(found, dict) and found:
        found[sorted(found)[at % len(found)]] = value
    elif inside and isinstance(found, list) and found:
        found[at % len(found)] = value
    else:
        record[field] = value
    try:
        read = read_benchmark(record)
    except BadContent:
        return
    assert len(read.samples_ns) == len(read.work) == read.parameters["repeats"]
    assert figures(read).p50_ms > 0


@pytest.mark.parametrize("name", sorted({*record_of()} - {"hub", "load_ms", "memory_peak_bytes", "expires"}))
def test_what_lacks_a_field_is_refused(name: str) -> None:
    with pytest.raises(BadContent):
        read_benchmark({key: value for key, value in record_of().items() if key != name})


def test_fields_that_are_not_known_are_left_alone() -> None:
    """E11: they are signed too, so the bytes are kept."""
    record: dict[str, Value] = {**record_of(), "later": [1, "two"]}
    assert read_benchmark(record) == read_benchmark(record_of())
    sealed = seal(record, KEY, BENCH_PREFIX)
    assert open_envelope(sealed.envelope_bytes, sealed.record_bytes, BENCH_PREFIX).record["later"] == [1, "two"]
    assert Cid.of(sealed.record_bytes, DAG_CBOR) == sealed.record_cid


# -- what the samples say


def test_figures_in_the_words_of_the_field() -> None:
    found = figures(read_benchmark(record_of()))
    assert (found.p50_ms, found.throughput, found.unit) == (2.5, 4800.0, "tokens/s")
    assert (found.ttft_ms, found.tpot_ms, found.rtf, found.phases_ms) == (None, None, None, {})
    generated = replace(MEASURED, samples_ns=(50, 50, 50), work=(11, 11, 11), phases_ns={FIRST_TOKEN: (10, 10, 10)})
    found = figures(read_benchmark(record_of(generated)))
    assert (found.ttft_ms, found.tpot_ms) == (10 / 1e6, 4 / 1e6)
    sound = replace(MEASURED, samples_ns=(500_000_000,) * 3, work=(2000,) * 3, unit="audio_ms")
    found = figures(read_benchmark(record_of(sound)))
    assert (found.rtf, found.throughput, found.unit) == (0.25, 4.0, "s of audio/s")


@given(st.lists(numbers, min_size=1, max_size=50))
def test_the_spread_is_none_where_all_are_alike(samples: list[int]) -> None:
    assert spread((samples[0],) * len(samples)) == 0
    assert spread(tuple(samples)) >= 0
    assert spread(tuple(samples)) == pytest.approx(spread(tuple(1000 * sample for sample in samples)))
