"""`pin --only`, `plan`, progress and receipts as the command line shows them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.cli.render import duration
from tests.support.daemon import MODEL, PLAN, RECEIPT, ROOT, Daemon, job, run_cli, run_on_terminal

SOURCES = [
    {"source": "http://peer:8090", "kind": "peer", "bytes": 300, "bytes_per_s": 30, "rejected": 0, "state": "working"},
    {"source": "http://liar", "kind": "gateway", "bytes": 0, "bytes_per_s": 0, "rejected": 1, "state": "out"},
]
FULL: dict[str, Any] = {
    **RECEIPT,
    "absent_files": 4,
    "sources": [{**RECEIPT["sources"][0], "seconds": 2.0}],
    "failures": [{"source": "http://liar", "kind": "gateway", "code": "hash_mismatch", "reason": "sent other bytes"}],
}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        yield running


async def test_patterns_are_sent_as_they_are(tmp_path: Path, daemon: Daemon) -> None:
    assert (await run_cli(tmp_path, "pin", ROOT, "--only", "*.json", "--only", "1_Pooling/*")).code == 0
    assert daemon.asked("POST", "/api/pins") == {"ref": ROOT, "only": ["*.json", "1_Pooling/*"]}


async def test_include_exclude_and_the_map_are_sent(tmp_path: Path, daemon: Daemon) -> None:
    part = {"left_out": [f"file{i}" for i in range(10)], "left_out_files": 12, "left_out_bytes": 34_000_000}
    done = {**FULL, "selection": part, "replaced": ["bafyold"], "bytes_here": 400_000, "map_note": "not published: why"}
    daemon.states = [job("pinned", 1000, receipt={**done, "map_envelope": None})]
    wanted = ("--include", "*.json", "--exclude", "a*", "--exclude", "b", "--publish-map")
    ran = await run_cli(tmp_path, "pin", "hf:org/name", *wanted)
    sent = {"ref": "hf:org/name", "only": ["*.json"], "exclude": ["a*", "b"], "publish_map": True}
    assert daemon.asked("POST", "/api/pins") == sent
    assert ran.code == 5  # the model is here, the map is not public
    lines = ran.out.splitlines()
    assert "left out   file0, file1, file2, file3, file4, file5, file6, file7 and 4 more (34 MB)" in lines
    assert "replaces   bafyold" in lines
    assert "was here   400 kB" in lines
    assert "map note   not published: why" in lines


async def test_lines_name_who_delivers_and_how_fast(tmp_path: Path, daemon: Daemon) -> None:
    daemon.states = [job("fetching", 500, sources=SOURCES, left_s=16.6), job("pinned", 1000, receipt=FULL)]
    done = await run_cli(tmp_path, "pin", ROOT)
    assert "fetching: 500 B of 1 kB from http://peer:8090 (30 B/s), 17 s left" in done.err.splitlines()
    lines = done.out.splitlines()
    assert "lacks      4 files, not asked for" in lines
    assert "took       2.2 s, 40 MB/s" in lines
    assert "from       http://peer:8090: 90 MB in 12 requests, 1 rejected, 2.0 s, 45 MB/s" in lines
    assert "failed     http://liar: hash_mismatch: sent other bytes" in lines


async def test_a_terminal_shows_a_line_for_each_source(tmp_path: Path, daemon: Daemon) -> None:
    daemon.states = [job("fetching", 500, sources=SOURCES, left_s=16.6), job("pinned", 1000, receipt=FULL)]
    done = await run_on_terminal(tmp_path, "pin", ROOT, columns=120, env={"NO_COLOR": "1"})
    assert done.code == 0
    for shown in ("http://peer:8090", "30 B/s", "17 s left", "1 rejected", "out", "500 B of 1 kB"):
        assert shown in done.out
    receipt = done.out[done.out.rindex("source") :]
    assert [
        word for word in ("kind", "requests", "rejected", "seconds", "rate", "45 MB/s") if word not in receipt
    ] == []


async def test_states_without_sources_are_shown_too(tmp_path: Path, daemon: Daemon) -> None:
    """As an older daemon tells them."""
    daemon.states = [job("fetching", 10), job("fetching", 900, bytes_total=None), job("pinned", 1000)]
    assert (await run_on_terminal(tmp_path, "pin", ROOT, columns=60)).code == 0


async def test_plan_says_what_a_pin_would_do(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "plan", ROOT, "--only", "*.json", "--only", "a b", "--source", "http://h")
    assert done.code == 0
    (seen,) = daemon.seen
    assert (seen.method, seen.path) == ("GET", f"/api/plan?ref={ROOT}&only=%2A.json&only=a+b&source=http%3A%2F%2Fh")
    lines = done.out.splitlines()
    assert "to fetch  90 MB" in lines
    assert "disk      90.5 MB needed, 50 MB free, 10 MB can be freed, quota 100 MB" in lines
    assert "fits      no: pin would be refused" in lines
    assert "http://peer:8090\tpeer\tall\t" in lines
    assert "http://gw\tgateway\tsome of it\tblock by block" in lines
    assert "kubo\tkubo\tstalled\tkubo did not answer within 10 s" in lines
    assert f"config.json\t400 kB\tyes\t{ROOT}" in lines
    assert (await run_cli(tmp_path, "plan", ROOT, "--json")).json == PLAN


async def test_incomplete_models_are_told(tmp_path: Path, daemon: Daemon) -> None:
    some = {**MODEL, "absent_files": 5, "absent_bytes": 10}
    store = {"models": [MODEL, some], "used_bytes": 1, "quota_bytes": None}
    daemon.answers["GET", "/api/store"] = (200, store)
    rows = [line.split("\t") for line in (await run_cli(tmp_path, "ls")).out.splitlines()]
    assert [row[5] for row in rows] == ["-", "incomplete: 2 of 7 files"]
    daemon.answers["GET", f"/api/store/{ROOT}"] = (200, {"model": some, "files": [], "loaded": None})
    assert "lacks    incomplete: 2 of 7 files" in (await run_cli(tmp_path, "info", ROOT)).out
    del daemon.answers["GET", "/api/store"]
    assert len((await run_cli(tmp_path, "ls")).out.split("\t")) == 5


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 89, 91, 3600, 5401)] == ["0 s", "89 s", "2 min", "60 min", "1.5 h"]
