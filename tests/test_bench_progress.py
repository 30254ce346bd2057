"""What a benchmark tells while it runs, and that it tells little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.benchmarks.measure import measure
from ipfs_accelerate_node.benchmarks.progress import APART_S, Doing, Telling
from tests.support.benchmarks import MODEL, NO_LIMITS, SMALL, Door, examples
from tests.support.models import tiny_model
from tests.support.running import running


def test_phases_at_once_and_repeats_now_and_then() -> None:
    now = 0.0
    told: list[Doing] = []
    telling = Telling(told.append, clock=lambda: now)
    count = telling.of("cpu", "encode-8x128")
    count("warm-up", 0, 1)
    for number in range(96):
        count("measuring", number, 96)
        now += APART_S / 8
    assert [(doing.phase, doing.done) for doing in told] == [
        ("warm-up", 0), *(("measuring", number) for number in range(0, 96, 8)),
    ]  # fmt: skip
    telling.of("cpu", "pp512")("measuring", 0, 5)
    assert told[-1] == Doing("cpu", "pp512", "measuring", 0, 5)


async def test_every_repeat_is_counted() -> None:
    told: list[tuple[str, int, int]] = []
    await measure(SMALL, MODEL, Door(), examples, tell=lambda *news: told.append(news))
    assert told == [
        *(("warm-up", number, SMALL.warmup) for number in range(SMALL.warmup)),
        *(("measuring", number, SMALL.repeats) for number in range(SMALL.repeats)),
    ]


@pytest.mark.timeout(90)
async def test_as_events(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", threads=1) as here:
        here.node.bench_limits = NO_LIMITS
        root = (await here.node.add(tiny_model(tmp_path / "tiny"), name="tiny")).root
        headers = {"Accept": "text/event-stream"}
        body = {"ref": "tiny", "workloads": ["encode-1x8"], "quick": True, "device": "cpu"}
        reply = await here.ask("POST", "/api/benchmarks", key=here.key, headers=headers, json=body)
        told = [event(part) for part in reply.body.decode().strip().split("\n\n")]
        assert {name for name, _ in told[:-1]} == {"doing"}
        phases = [data["phase"] for _, data in told[:-1]]
        assert [phase for phase in dict.fromkeys(phases)] == ["loading", "comparing", "warm-up", "measuring"]
        name, done = told[-1]
        assert (name, done["results"][0]["record"]["model"]) == ("bench", root)
        reply = await here.ask("POST", "/api/benchmarks", key=here.key, headers=headers, json={"ref": "nobody"})
        ((name, problem),) = [event(part) for part in reply.body.decode().strip().split("\n\n")]
        assert (name, problem["status"], problem["code"]) == ("failed", 404, "model_not_found")


def event(text: str) -> tuple[str, Any]:
    name, data = text.splitlines()
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
