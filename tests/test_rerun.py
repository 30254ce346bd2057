"""Outliers by a written rule, and a peer's workload run again here."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipfs_accelerate_node.benchmarks import Limits
from ipfs_accelerate_node.benchmarks.rerun import MOST_RUNS, Again, closest, judged, planned
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.errors import DeviceUnavailable, InvalidInput
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.likeness import RULE, allowed, outliers, unlike
from ipfs_accelerate_node.peers.ranking import ranked
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, Sealed, seal
from tests.support.benchmarks import NO_LIMITS
from tests.support.models import tiny_model
from tests.support.results import fake_peers, key, telling
from tests.support.results_found import measured
from tests.support.running import Running, running
from tests.support.sample import SAMPLE

GPU: dict[str, Any] = {"device": "cuda:0", "device_name": "NVIDIA H100"}
HERE = (
    Accelerator("cpu", "torch", "A Processor", True),
    Accelerator("cuda:0", "torch", "A card", True),
    Accelerator("cuda:1", "torch", "A card", False, "in use"),
    Accelerator("openvino:CPU", "openvino", "A Processor", True),
)


# -- the rule


@pytest.mark.parametrize(
    ("claimed_ms", "own_ms", "spreads", "said"),
    [
        (10, 10, (0, 0), ""),
        (10, 12.5, (0, 0), ""),  # 1.25 times, to the edge
        (10, 12.6, (0, 0), "faster"),
        (12.6, 10, (0, 0), "slower"),
        (10, 13, (0.1, 0.1), ""),  # quartiles of 5 % on each side: 0.1 in all, half of it for each
        (10, 13.6, (0.1, 0.1), "faster"),
        (10, 15, (9, 9), ""),  # wide samples get 0.25 and no more
        (10, 15.1, (9, 9), "faster"),
        (0.001, 1000, (0.1, 0.1), "faster"),
    ],
)
def test_how_far_apart_is_unlike(claimed_ms: float, own_ms: float, spreads: tuple[float, float], said: str) -> None:
    there = measured(2, claimed_ms, spread=min(spreads[0], 0.9))
    here = measured(1, own_ms, spread=min(spreads[1], 0.9))
    assert unlike(there, here) == said
    assert 1.25 <= allowed(there, here) <= 1.5
    assert allowed(there, here) == allowed(here, there)
    for number in ("1.25", "0.25", "2 times"):
        assert number in RULE


@pytest.mark.parametrize(
    ("claimed_ms", "flagged"),
    [((10, 10, 10), {}), ((10, 21), {}), ((10, 11, 21), {}), ((10, 11, 22), {4: "slower"}),
     ((4, 10, 11), {2: "faster"}), ((10, 10.5, 11, 1), {5: "faster"}), ((1, 1, 10, 10), {})],
)  # fmt: skip
def test_keys_alone_flag_only_who_is_far_from_all_others(
    claimed_ms: tuple[float, ...], flagged: dict[int, str]
) -> None:
    votes = [measured(number, ms) for number, ms in enumerate(claimed_ms, 2)]
    assert outliers(votes) == {votes[number - 2].key: said for number, said in flagged.items()}


def test_only_like_hardware_is_compared() -> None:
    cores = [measured(2, 10), measured(3, 10), measured(4, 1, cores=64)]
    assert outliers(cores) == {}
    cards = [measured(n, ms, **GPU, cpu=f"cpu {n}") for n, ms in ((2, 10), (3, 11), (4, 1))]
    assert list(outliers(cards).values()) == ["faster"]  # whatever processor is beside the card


def test_the_table_flags_against_our_own_figure_first() -> None:
    claims = [measured(2, 10), measured(3, 10), measured(4, 30)]
    (alone,) = ranked(claims, ())
    assert [vote.unlike for vote in alone.votes] == ["", "", "slower"]
    (beside,) = ranked(claims, [measured(1, 30)])
    assert [vote.unlike for vote in beside.votes] == ["faster", "faster", ""]
    assert beside.own is not None
    assert (beside.own.signer, beside.own.cores, beside.own.unlike) == (key(1).peer_id, 8, "")
    (other,) = ranked([measured(2, 10, cores=64)], [measured(1, 30)])
    assert [vote.unlike for vote in other.votes] == [""]


def test_a_flag_takes_no_vote() -> None:
    (result,) = ranked([measured(2, 10), measured(3, 10), measured(4, 1)], ())
    assert (result.keys, result.median_ns, sum(vote.counted for vote in result.votes)) == (3, 10_000_000, 3)
    (trusted,) = ranked([measured(2, 10), measured(3, 12)], (), trusted={key(3).peer_id})
    assert [(v.signer, v.counted) for v in trusted.votes] == [(key(3).peer_id, True), (key(2).peer_id, False)]


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({}, "alike", "1.00 times"),
        ({"ms": 1.0}, "faster", "unlike ours: faster by 10.00 times"),
        ({"ms": 100.0}, "slower", "unlike ours: slower by 10.00 times"),
        ({"cores": 64, "ms": 1.0}, "other_hardware", "x86_64, 64 cores there, A Processor, x86_64, 8 cores here"),
        ({"cpu": "Another", "ms": 1.0}, "other_hardware", "Another"),
        ({**GPU, "ms": 1.0}, "other_device", "cuda:0 (torch) there, cpu (torch) here"),
        ({"engine": "openvino", "ms": 1.0}, "other_device", "cpu (openvino) there"),
        ({"settings": {"batch": 8, "tokens": 8}, "ms": 1.0}, "other_work", "tokens=8"),
        ({"unit": "inputs"}, "other_work", "inputs"),
        ({"precision": "f16"}, "other_work", "f16"),
    ],
)  # fmt: skip
def test_what_may_be_said_of_two_figures(change: dict[str, Any], verdict: str, why: str) -> None:
    said = judged(measured(2, change.pop("ms", 10.0), **change), measured(1, 10.0))
    assert said[0] == verdict
    assert why in said[1]
    assert "wrong" not in said[1]


# -- what is run


@pytest.mark.parametrize(
    ("device", "here"),
    [("cpu", "cpu"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:0"), ("cuda:7", "cuda:0"), ("openvino:CPU", "openvino:CPU"),
     ("openvino:GPU.1", "openvino:CPU"), ("openvino:NPU", "openvino:CPU"), ("tpu", "cpu"), ("", "cpu")],
)  # fmt: skip
def test_the_closest_device(device: str, here: str) -> None:
    assert closest(device, HERE) == here
    assert closest(device, HERE[:1]) == "cpu"


def runs(claims: list[Claim], again: Again, *, trusted: tuple[str, ...] = ()) -> dict[Any, list[str]]:
    return {load: list(names) for load, names in planned(claims, again, HERE, trusted).runs.items()}


def test_a_peer_chooses_neither_how_long_nor_how_much() -> None:
    odd = [
        measured(2, 1, workload="encode-1024x131072", batch=1024),
        measured(2, 1, workload="fetch", seq=2),
        measured(2, 1, workload="rm -rf", seq=3),
        measured(2, 1, precision="f1", seq=4),
        measured(2, 1, seq=5),
    ]
    plan = planned(odd, Again("m"), HERE, ())
    assert {load: list(names) for load, names in plan.runs.items()} == {("embedding", "f32", "cpu"): ["encode-8x128"]}
    assert {left.workload for left in plan.left_out} == {"encode-1024x131072", "fetch", "rm -rf", "encode-8x128"}
    assert "--workload encode-1024x131072 runs it" in " ".join(left.reason for left in plan.left_out)
    named = Again("m", workloads=("encode-1024x131072",))
    assert runs(odd, named) == {("embedding", "f32", "cpu"): ["encode-1024x131072"]}
    with pytest.raises(InvalidInput):
        planned(odd, Again("m", workloads=("rm -rf",)), HERE, ())


def test_trusted_keys_first_and_so_many_at_most() -> None:
    tasks = [measured(2, 1, task="embedding", workload=f"encode-{n}x128", seq=n) for n in range(2, 30)]
    mine = measured(3, 1, workload="encode-29x128")
    again = Again("m", workloads=tuple(one.workload for one in tasks))
    plan = planned([*tasks, mine], again, HERE, (key(3).peer_id,))
    (wanted,) = plan.runs.values()
    assert len(wanted) == MOST_RUNS
    assert next(iter(wanted)) == "encode-29x128"
    assert [claim.signer for claim in wanted["encode-29x128"]] == [key(3).peer_id, key(2).peer_id]
    assert {left.code for left in plan.left_out} == {"too_many"}
    assert runs([*tasks, mine], Again("m", keys=(key(9).peer_id,))) == {}


def test_the_newest_of_each_key_on_the_device_that_was_asked_for() -> None:
    claims = [measured(2, 1), measured(2, 9, seq=2), measured(3, 1, **GPU)]
    plan = planned(claims, Again("m", device="cuda"), HERE, ())
    assert list(plan.runs) == [("embedding", "f32", "cuda:0")]
    (wanted,) = plan.runs.values()
    assert sorted(claim.median_ns for claim in wanted["encode-8x128"]) == [1_000_000, 9_000_000]
    with pytest.raises(DeviceUnavailable):
        planned(claims, Again("m", device="tpu"), HERE, ())


# -- on a whole node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("rerun")
    (folder / "cache").mkdir(mode=0o700)
    async with running(folder / "cache") as node:
        node.node.bench_limits = NO_LIMITS
        await node.node.add(tiny_model(folder / "tiny"), name="tiny")
        yield node


def retold(record: dict[str, Value], by: int, factor: float, **changes: Value) -> Sealed:
    """The same measurement as another key says it, so many times as long."""
    told = copy.deepcopy(record)
    samples = told["samples_ns"]
    assert isinstance(samples, list)
    told["samples_ns"] = [max(1, int(ns * factor)) for ns in samples if isinstance(ns, int)]
    told |= {"created": int(time.time()) - 5, "phases_ns": {}, **changes}
    return seal(told, key(by), BENCH_PREFIX)


async def own_record(here: Running, ref: str, workload: str) -> dict[str, Value]:
    wish = {"ref": ref, "device": "cpu", "workloads": [workload], "quick": True}
    reply = await here.admin("POST", "/api/benchmarks", json=wish)
    assert reply.status == 200, reply.body
    envelope = reply.json["results"][0]["envelope_cid"]
    listed = RecordShelf(here.node.config.cache).listing().records
    return next(dict(opened.record) for opened in listed if str(opened.envelope_cid) == envelope)


async def verified(here: Running, **wanted: Any) -> dict[str, Any]:
    reply = await here.admin("POST", "/api/results/verify", json={"quick": True, **wanted})
    assert reply.status == 200, reply.body
    made: dict[str, Any] = reply.json
    return made


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_peers_workload_runs_here_beside_what_the_peer_says(here: Running) -> None:
    record = await own_record(here, "tiny", "encode-1x16")
    machine = record["machine"]
    assert isinstance(machine, dict)
    versions: dict[str, Value] = {"node": "0", "torch": "1.0"}
    told = [
        retold(record, 2, 0.001),
        retold(record, 3, 0.001, machine={**machine, "cores": 4096}, versions=versions),
        retold(record, 4, 1.0, device="cuda:5", device_name="A card"),
        retold(record, 5, 0.001, workload={**_workload(record), "tokens": 3}),
    ]
    async with fake_peers([telling(told)]) as (url,):
        done = await verified(here, ref="tiny", peers=[url])
    pairs = {pair["signer"]: pair for pair in done["beside"]}
    verdicts = {number: pairs[key(number).peer_id]["verdict"] for number in (2, 3, 4, 5)}
    assert verdicts == {2: "faster", 3: "other_hardware", 4: "other_device", 5: "other_work"}
    assert "torch 1.0 there" in " ".join(pairs[key(3).peer_id]["differs"])
    unlike = pairs[key(2).peer_id]
    assert unlike["ratio"] < 0.5
    assert 1.25 <= unlike["most"] <= 1.5
    assert done["rule"] == RULE
    assert done["inquiry"]["answers"][0]["accepted"] == 4
    kept = {str(one.envelope_cid) for one in RecordShelf(here.node.config.cache).listing().records}
    assert {pair["own"]["envelope_cid"] for pair in done["beside"]} <= kept
    published = RecordShelf(here.node.config.cache).listing(published=True).records
    assert not published  # what was run again is kept, and nobody is told

    only = await verified(here, ref="tiny", ask=False, keys=[key(4).peer_id])
    assert [pair["signer"] for pair in only["beside"]] == [key(4).peer_id]
    assert only["inquiry"] is None
    found = (await here.admin("GET", f"/api/results?model={done['model']}&ask=no")).json
    flags = {vote["signer"]: vote["unlike"] for result in found["results"] for vote in result["votes"]}
    assert (flags[key(2).peer_id], flags[key(3).peer_id]) == ("faster", "")


def _workload(record: dict[str, Value]) -> dict[str, Value]:
    found = record["workload"]
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_busy_machine_runs_nothing_again(here: Running) -> None:
    record = await own_record(here, "tiny", "encode-1x16")
    here.node.bench_limits = Limits(spread=-1.0)
    try:
        async with fake_peers([telling([retold(record, 6, 1.0)])]) as (url,):
            wish = {"ref": "tiny", "peers": [url], "keys": [key(6).peer_id], "quick": True}
            reply = await here.admin("POST", "/api/results/verify", json=wish)
    finally:
        here.node.bench_limits = NO_LIMITS
    assert (reply.status, reply.json["code"]) == (503, "machine_busy")
    assert here.node.registry.loaded() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_run_again_is_refused(here: Running) -> None:
    for wish, status, code in (
        ({"ref": "nobody"}, 404, "model_not_found"),
        ({"ref": "mock:embedding"}, 400, "mock_not_measurable"),
        ({"ref": "tiny", "ask": False, "keys": [key(99).peer_id]}, 404, "no_claims"),
        ({"ref": "tiny", "keys": ["me"]}, 400, "bad_request"),
        ({"ref": "tiny", "peers": ["ftp://a"]}, 400, "bad_request"),
    ):
        reply = await here.admin("POST", "/api/results/verify", json=wish)
        assert (reply.status, reply.json["code"]) == (status, code), wish
    assert (await here.ask("POST", "/api/results/verify", json={"ref": "tiny"})).status in (401, 403)


@pytest.mark.model
@pytest.mark.timeout(180)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_real_model_is_run_again(here: Running, tmp_path: Path) -> None:
    await here.node.add(SAMPLE, name="minilm")
    record = await own_record(here, "minilm", "encode-1x16")
    async with fake_peers([telling([retold(record, 7, 1 / 50)])]) as (url,):
        done = await verified(here, ref="minilm", peers=[url])
    (pair,) = done["beside"]
    assert (pair["verdict"], pair["workload"], pair["precision"]) == ("faster", "encode-1x16", "f32")
    assert pair["settings"] == "batch=1 length=16 tokens=16 truncated=0"
    assert pair["own"]["median_ns"] > 10 * pair["claim"]["median_ns"]
