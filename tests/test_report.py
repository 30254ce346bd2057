"""The report: what is REAL and by what evidence, what is not and why, and two machines side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from ipfs_accelerate_node.benchmarks.cells import (
    Cell,
    Difference,
    Report,
    Same,
    Status,
    compare,
    matrix,
    read_report,
)
from ipfs_accelerate_node.benchmarks.trial import (
    Agreement,
    agreement,
    moved_neighbours,
    reference,
    verdict,
)
from ipfs_accelerate_node.cli.report_tables import agreement as shown
from ipfs_accelerate_node.cli.report_tables import differing, escaped, markdown, markdown_of_many, remarks
from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput
from ipfs_accelerate_node.inference.agreement import INPUTS, cosine
from tests.support.daemon import run_cli, start_cli
from tests.support.models import tiny_model
from tests.support.running import Running, running

KEYS = {
    "model", "root", "task", "device", "engine", "precision", "status", "reason", "agreement", "p50_ms", "p95_ms",
    "throughput", "unit", "memory_bytes", "load_s",
}  # fmt: skip


# -- on a whole node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("report")
    (folder / "cache").mkdir(mode=0o700)
    async with running(folder / "cache") as node:
        await node.node.add(tiny_model(folder / "tiny"), name="tiny")
        await node.node.add(_without_weights(tiny_model(folder / "empty", seed=1)), name="empty")
        yield node


def _without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"not weights")
    return folder


async def made(here: Running, **wanted: list[str]) -> dict[str, Any]:
    reply = await here.admin("POST", "/api/report", json=wanted)
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_cell_is_real_with_evidence_or_says_why_not(here: Running) -> None:
    found = await made(here, devices=["cpu", "cuda:7"])
    assert found["machine"]["cores"] >= 1
    assert {"device": "cpu", "available": True}.items() <= found["machine"]["devices"][0].items()
    cells = {(cell["model"], cell["device"]): cell for cell in found["cells"]}
    assert set(cells) == {(model, device) for model in ("tiny", "empty") for device in ("cpu", "cuda:7")}
    assert all(set(cell) >= KEYS for cell in found["cells"])
    real = cells["tiny", "cpu"]
    assert (real["status"], real["engine"], real["precision"], real["task"]) == ("REAL", "torch", "f32", "embedding")
    assert real["root"] == str(here.node.find("tiny").root)
    assert real["agreement"] == 1.0
    assert 0 < real["p50_ms"] <= real["p95_ms"]
    assert real["throughput"] > 0
    assert real["unit"] == "texts/s"
    assert real["memory_bytes"] > 50 << 20
    assert real["load_s"] > 0
    for model in ("tiny", "empty"):
        absent = cells[model, "cuda:7"]
        assert absent["status"] == "UNAVAILABLE"
        assert "cuda:7 is not available" in absent["reason"]
        assert absent["p50_ms"] is absent["agreement"] is absent["memory_bytes"] is None
    broken = cells["empty", "cpu"]
    assert broken["status"] == "ERROR"
    assert "model.safetensors" in broken["reason"]
    assert here.node.registry.loaded() == []  # it leaves as loaded what was loaded before: nothing


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_was_loaded_stays_loaded(here: Running) -> None:
    loaded = await here.node.serving.load("tiny", device="cpu")
    (cell,) = (await made(here, refs=["tiny"], devices=["cpu"]))["cells"]
    assert "was loaded before" in cell["notes"]
    assert [model.pid for model in here.node.registry.loaded()] == [loaded.pid]
    assert [model.names for model in here.node.registry.loaded()] == [("tiny",)]
    await here.node.serving.unload("tiny")


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_precision_that_the_engine_has_not_is_unavailable(here: Running) -> None:
    half, small = (await made(here, refs=["tiny"], devices=["cpu"], precisions=["bf16", "int8"]))["cells"]
    assert (half["status"], half["precision"]) == ("REAL", "bf16")
    assert 0.999 <= half["agreement"] < 1
    assert (small["status"], small["precision"]) == ("UNAVAILABLE", "int8")
    assert "int8" in small["reason"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_mock_is_named_as_one_and_never_measured(here: Running) -> None:
    (cell,) = (await made(here, refs=["mock:embedding"], devices=["cpu"]))["cells"]
    assert (cell["status"], cell["engine"], cell["task"]) == ("MOCK", "mock", "embedding")
    assert cell["reason"]
    assert [cell[key] for key in ("agreement", "p50_ms", "p95_ms", "throughput", "memory_bytes", "load_s")] == [
        None
    ] * 6
    assert here.node.registry.loaded() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_asked_for_must_exist(here: Running) -> None:
    assert (await here.admin("POST", "/api/report", json={"refs": ["nobody"]})).status == 404
    unknown = await here.admin("POST", "/api/report", json={"devices": ["tpu"]})
    assert (unknown.status, unknown.json["code"], unknown.json["exit_code"]) == (422, "device_unavailable", 5)
    assert (await here.admin("POST", "/api/report", json={"precisions": ["f64"]})).status in (400, 422)
    assert (await here.ask("POST", "/api/report", json={})).status in (401, 403)


def events(body: bytes) -> Iterator[tuple[str, Any]]:
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            yield lines["event"], json.loads(lines["data"])


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_who_watches_is_told_step_by_step(here: Running) -> None:
    headers = {"Accept": "text/event-stream"}
    wanted = {"refs": ["tiny", "mock:embedding"], "devices": ["cpu"]}
    reply = await here.admin("POST", "/api/report", json=wanted, headers=headers)
    told = list(events(reply.body))
    assert [name for name, _ in told if name != "step"] == ["cell", "cell", "report"]
    assert next(data["doing"] for name, data in told if name == "step") == "loading"
    assert told[-1][1]["cells"] == [data for name, data in told if name == "cell"]
    failed = await here.admin("POST", "/api/report", json={"refs": ["nobody"]}, headers=headers)
    ((name, problem),) = events(failed.body)
    assert (name, problem["code"], problem["status"]) == ("failed", "model_not_found", 404)


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_device_that_computes_something_else_is_found_out(here: Running) -> None:
    loaded = await here.node.serving.load("tiny", device="cpu")
    registry = here.node.registry
    workload = await reference(registry, loaded)
    assert INPUTS / 2 < len(workload.items) == len(set(workload.items)) <= INPUTS
    assert workload.generated is None
    assert verdict(await agreement(registry, loaded, workload), "f32") == ""
    other = replace(workload, primaries=(*workload.primaries[:-1], -workload.primaries[-1]))
    found = await agreement(registry, loaded, other)
    assert found.minimum == pytest.approx(-1)
    assert "does not agree" in verdict(found, "bf16")
    wider = replace(workload, primaries=tuple(np.append(p, p) for p in workload.primaries))
    with pytest.raises(InferenceFailed, match="shape"):
        await agreement(registry, loaded, wider)
    await here.node.serving.unload("tiny")


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_caller_who_leaves_ends_the_report_and_nothing_stays_loaded(here: Running) -> None:
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {here.key}"}
    wanted = {"refs": ["tiny"], "devices": ["cpu"]}
    async with here.session.post(f"{here.url}/api/report", json=wanted, headers=headers) as reply:
        assert await reply.content.readline() == b"event: step\n"
        second = await here.admin("POST", "/api/report", json=wanted)
        assert (second.status, second.json["code"]) == (409, "report_running")
        reply.close()
    async with asyncio.timeout(90):
        while (await here.admin("POST", "/api/report", json={"refs": ["mock:embedding"]})).status == 409:
            continue  # each look is a request, which the daemon answers while it ends the other
    assert here.node.registry.loaded() == []


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_command_tells_its_steps_and_prints_the_table(here: Running, tmp_path: Path) -> None:
    env = {"IPFS_ACCELERATE_NODE_URL": here.url, "IPFS_ACCELERATE_NODE_KEY": here.key}
    table = tmp_path / "table.md"
    arguments = ["tiny", "--device", "cpu", "--device", "cuda:7", "--markdown", str(table)]
    process = await start_cli(tmp_path, "report", *arguments, env=env)
    out, err = await process.communicate()
    assert process.returncode == 0, err
    first, second = out.decode().splitlines()
    assert first.split("\t")[:7] == ["tiny", "embedding", "cpu", "torch", "f32", "REAL", "1"]
    assert second.split("\t")[2:6] == ["cuda:7", "torch", "f32", "UNAVAILABLE"]
    assert "cuda:7 is not available" in second
    assert "tiny on cpu (f32): measuring" in err.decode()
    assert "| tiny | embedding | cpu | torch | f32 | REAL | 1 |" in table.read_text()
    refused = await run_cli(tmp_path, "report", "nobody", "--json", env=env)
    assert (refused.code, refused.json["code"]) == (3, "model_not_found")


# -- arithmetic


def test_cosine_is_of_flat_vectors() -> None:
    one = np.array([[1, 2], [3, 4]], np.float32)
    assert cosine(one, one) == 1.0
    assert cosine(one, -one) == pytest.approx(-1)
    assert cosine(one, one * 7) == pytest.approx(1)
    assert cosine(one * 0, one * 0) == 1.0
    assert cosine(one, one * 0) == 0.0
    assert cosine(np.array([1, 0], np.float32), np.array([0, 1], np.float32)) == 0.0


def test_neighbours_that_moved_are_counted() -> None:
    angles = np.array([0.0, 0.1, 1.0, 1.2])
    there = [np.array([np.cos(a), np.sin(a)], np.float32) for a in angles]
    assert moved_neighbours(there, there) == 0
    nearer = [*there[:1], np.array([np.cos(0.95), np.sin(0.95)], np.float32), *there[2:]]
    assert moved_neighbours(nearer, there) == 2  # the one that moved, and the one it moved to
    assert moved_neighbours([np.ones((2, 2), np.float32)] * 3, [np.ones((2, 2), np.float32)] * 3) is None


@pytest.mark.parametrize(
    ("precision", "minimum", "mean", "agrees"),
    [
        ("f32", 0.9999, 1.0, True),
        ("f32", 0.99989, 1.0, False),
        ("bf16", 0.999, 1.0, True),
        ("f16", 0.9989, 1.0, False),
        ("int8", 0.9, 0.98, True),  # by its mean: one bad input is shown, and not hidden by refusing all
        ("int8", 0.99, 0.9799, False),
    ],
)
def test_how_near_is_near_enough(precision: str, minimum: float, mean: float, agrees: bool) -> None:
    assert (verdict(Agreement(minimum, mean, None, None), precision) == "") is agrees


# -- tables


def cell(model: str, device: str, status: Status = "REAL", p50_ms: float | None = 1.0, **more: Any) -> Cell:
    kind = "openvino" if device.startswith("openvino") else "torch"
    return Cell(
        model=model, root=f"bafy{model}", task="embedding", device=device, engine=kind, precision="f32", status=status,
        p50_ms=p50_ms if status == "REAL" else None, **more,
    )  # fmt: skip


HERE = Report(
    {"cpu": "A processor", "cores": 2, "memory_bytes": 8_000_000_000},
    (
        cell("bert", "cpu", p50_ms=20.0),
        cell("bert", "openvino:CPU", p50_ms=10.0, agreement=0.99999994),
        cell("bert", "cuda:0", "UNAVAILABLE", reason="no | card\n# here"),
        cell("t5", "cpu", greedy=Same(20, 20), notes=("greedy tokens as the reference's in 20 of 20",)),
    ),
)
THERE = Report(
    {
        "cpu": "Another",
        "devices": [{"device": "cuda:0", "name": "A card", "available": True, "versions": {"torch": "2"}}],
    },
    (cell("bert", "cuda:0", p50_ms=1.5), cell("bert", "cpu", p50_ms=30.0), cell("t5", "cuda:0", "ERROR", reason="bad")),
)


def test_of_two_machines_the_one_that_has_it_real_fills_the_cell() -> None:
    together = compare([HERE, THERE])
    assert len(together.cells) == len(HERE.cells) + len(THERE.cells)
    models, devices, best = matrix(together.cells)
    assert (models, devices) == (["bert", "t5"], ["cpu", "openvino:CPU", "cuda:0"])
    assert (best["bert", "cuda:0"].status, best["bert", "cuda:0"].p50_ms) == ("REAL", 1.5)
    assert best["bert", "cpu"].p50_ms == 20.0
    assert best["t5", "cuda:0"].status == "ERROR"
    assert ("t5", "openvino:CPU") not in best
    sides = [(c.device, c.machine) for c in together.cells if c.model == "bert"]
    assert sides == [("cpu", 0), ("cpu", 1), ("openvino:CPU", 0), ("cuda:0", 1), ("cuda:0", 0)]


def test_what_is_not_the_same_on_both_sides_is_said() -> None:
    assert compare([HERE, THERE]).differences == ()
    other = cell("bert", "cuda:0", p50_ms=1.5)
    changed = msgspec.structs.replace(other, root="bafyother", precision="bf16")
    absent = msgspec.structs.replace(cell("t5", "cuda:0", "UNAVAILABLE"), precision="bf16")
    together = compare([HERE, Report({}, (changed, absent)), Report({}, (cell("vit", "cpu"),))])
    assert together.differences == (
        Difference("bert", "root", (("bafybert",), ("bafyother",), ())),
        Difference("bert", "precision", (("f32",), ("bf16",), ())),
    )
    assert differing(together) == [
        "≠ bert is not the same model everywhere: bafybert [A]; bafyother [B]",
        "≠ bert ran in different precisions: f32 [A]; bf16 [B]",
    ]
    both = markdown_of_many(together)
    assert "| bert ≠ | REAL 20 ms f32 \\[A\\] |" in both
    assert "- ≠ bert ran in different precisions: f32 \\[A\\]; bf16 \\[B\\]" in both


def test_markdown_is_a_table_whatever_a_text_holds() -> None:
    lines = markdown(HERE).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(HERE.cells)
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert any("no \\| card\\\\n\\# here" in line for line in lines)
    assert any(line.startswith("- bert is bafybert") for line in lines)
    both = markdown_of_many(compare([HERE, THERE]))
    assert "REAL 1.5 ms \\[B\\]" in both
    assert "A card (torch 2)" in both


def test_nothing_of_another_machine_reaches_the_terminal_raw() -> None:
    assert escaped("<b>\x1b[31m`x`") == "\\<b\\>\\\\x1b\\[31m\\`x\\`"
    assert remarks(cell("m", "cpu", "ERROR", reason="why", notes=("a",))) == ["why", "a"]


def test_an_agreement_is_never_rounded_up() -> None:
    assert shown(1.0) == "1"
    assert shown(0.99999994) == "0.999999"
    assert shown(0.9) == "0.900000"
    assert shown(-0.5) == "-0.500000"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"machine": {}, "cells": [{"status": "GREAT"}]}', b"\xff"])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"other\.json is not what"):
        read_report(data, name="other.json")


# -- command line


async def test_two_files_need_no_daemon(tmp_path: Path) -> None:
    names = []
    for name, report in (("here.json", HERE), ("there.json", THERE)):
        (tmp_path / name).write_bytes(msgspec.json.encode(report))
        names += ["--compare", str(tmp_path / name)]
    done = await run_cli(tmp_path, "report", *names, "--json", "--markdown", str(tmp_path / "table.md"))
    assert done.code == 0, done.err
    together = json.loads(done.out)
    assert [machine["cpu"] for machine in together["machines"]] == ["A processor", "Another"]
    assert len(together["cells"]) == 7
    assert "| bert | REAL 20 ms \\[A\\] |" in (tmp_path / "table.md").read_text()
    plain = await run_cli(tmp_path, "report", *names)
    assert plain.code == 0, plain.err
    assert "bert\tREAL 20 ms [A]\tREAL 10 ms [A]\tREAL 1.5 ms [B]" in plain.out


async def test_files_that_are_no_reports_and_contradictions_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    bad = ["--compare", str(tmp_path / "bad.json")]
    assert (await run_cli(tmp_path, "report", *bad, *bad)).code == 2
    assert (await run_cli(tmp_path, "report", "tiny", *bad, *bad)).code == 2
    assert (await run_cli(tmp_path, "report", "--precision", "f64")).code == 2
