"""`results` and `peers` as the command line shows them, over HTTP as the daemon answers."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ROOT, Daemon, run_cli

RESULT: dict[str, Any] = {
    "task": "embedding", "engine": "torch", "precision": "f32", "device": "cpu", "device_name": "A Processor",
    "workload": "embedding-b8", "settings": "batch=8", "unit": "tokens", "keys": 3, "trusted": 1,
    "median_ns": 2_000_000, "low_ns": 1_500_000, "high_ns": 2_500_000, "per_s": 50_000.0, "own_ns": None,
    "own_per_s": None, "cpus": ["A Processor"], "newest": 1, "signers": ["12D3KooWa"],
}  # fmt: skip
HOSTILE = {**RESULT, "device": "=1+1", "device_name": "", "workload": "a|b<i>\x1b[31m\u202e", "own_ns": 1_000_000}
FOUND: dict[str, Any] = {
    "model": ROOT, "results": [RESULT, HOSTILE], "claims": 4, "keys": 3, "flagged": ["12D3KooWb"],
    "inquiry": {
        "answers": [
            {"peer": "http://a", "way": "http", "accepted": 2, "known": 1, "seconds": 0.1,
             "refused": [{"code": "bad_signature", "reason": "signature refused", "count": 5}]},
        ],
        "failures": [{"peer": "http://b", "code": "stalled", "reason": "no answer", "seconds": 2.0}],
        "note": "the network was not searched: Kubo is off", "seconds": 2.0,
    },
}  # fmt: skip
ASKED = f"/api/results?model={ROOT}"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        running.answers["GET", ASKED] = (200, FOUND)
        yield running


async def test_a_line_for_each_result_and_the_failures_beside(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT)
    assert done.code == 0
    first, second = done.out.splitlines()
    assert first.split("\t") == [
        "cpu", "A Processor", "torch", "f32", "embedding-b8 batch=8", "3", "1", "2.000", "1.500", "2.500", "5e+04",
        "tokens/s", "-", "-",
    ]  # fmt: skip
    assert "\x1b" not in second
    assert "\u202e" not in second
    for told in (
        "12D3KooWb contradicted itself: its results are not counted",
        "http://a: 5 records refused: bad_signature: signature refused",
        "http://b: no answer: stalled: no answer",
        "the network was not searched: Kubo is off",
        "1 nodes answered, 1 did not; 2 new records",
    ):
        assert told in done.err.splitlines()
    assert (await run_cli(tmp_path, "results", ROOT, "--json")).json == FOUND


async def test_csv_holds_no_formula(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT, "--csv")
    header, first, second = csv.reader(io.StringIO(done.out))
    assert dict(zip(header, first, strict=True))["median_ms"] == "2.000"
    assert second[0] == "'=1+1"


async def test_markdown_is_escaped(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT, "--markdown")
    head, rule, first, second = done.out.splitlines()
    assert head.startswith("| device | cpu |")
    assert rule.count("---") == 14
    assert "| 3 | 1 | 2.000 | 1.500 | 2.500 |" in first
    assert "a\\|b&lt;i>" in second
    assert "\x1b" not in second


async def test_what_is_asked_for(tmp_path: Path, daemon: Daemon) -> None:
    peer = "http%3A%2F%2F127.0.0.1%3A1"
    target = f"{ASKED}&peer={peer}&hardware=like-mine&ask=no"
    daemon.answers["GET", target.replace("%3A", ":").replace("%2F", "/")] = (200, {**FOUND, "results": []})
    daemon.answers["GET", target] = daemon.answers["GET", target.replace("%3A", ":").replace("%2F", "/")]
    options = ("--peer", "http://127.0.0.1:1", "--hardware", "like-mine", "--offline")
    done = await run_cli(tmp_path, "results", ROOT, *options)
    assert "nobody's results are known here" in done.err


async def test_peers_are_listed_added_and_removed(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["GET", "/api/peers"] = (200, {
        "configured": ["http://a"], "added": ["12D3KooWa", "http://a"], "trusted": ["12D3KooWa"],
        "tunnels": [{"peer_id": "12D3KooWa", "node": "n", "version": "1", "in_use": 0},
                    {"peer_id": "12D3KooWc", "node": "n", "version": "2", "in_use": 0}],
    })  # fmt: skip
    listed = await run_cli(tmp_path, "peers", "ls")
    assert [line.split("\t") for line in listed.out.splitlines()] == [
        ["http://a", "configuration", "no", "-"],
        ["12D3KooWa", "added", "yes", "open, version 1"],
        ["12D3KooWc", "met", "no", "open, version 2"],
    ]
    daemon.answers["POST", "/api/peers"] = (201, {"peer": "http://b", "trusted": False})
    assert (await run_cli(tmp_path, "peers", "add", "http://b")).code == 0
    assert daemon.asked("POST", "/api/peers") == {"peer": "http://b", "trust": False}


async def test_a_key_is_not_revoked_by_accident(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "peers", "revoke")
    assert done.code != 0
    assert not daemon.seen
    daemon.answers["POST", "/api/revocation"] = (200, {"name": "k51", "envelope_cid": "bafy", "at": 1})
    assert "revoked   k51" in (await run_cli(tmp_path, "peers", "revoke", "--yes")).out
