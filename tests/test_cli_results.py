"""`results` and `peers` as the command line shows them, over HTTP as the daemon answers."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pyarrow.parquet
import pytest

from tests.support.daemon import ROOT, Daemon, run_cli
from tests.support.results import key
from tests.support.results_found import found, measured

FOUND: dict[str, Any] = {
    **found(
        [measured(2, 2.0), measured(3, 2.2), measured(4, 0.5)],
        [measured(1, 2.1), measured(1, 1.0, seq=2, device="=1+1", device_name="", cpu="a|b<i>[x]")],
    ),
    "model": ROOT,
    "flagged": ["12D3KooWb"],
    "inquiry": {
        "answers": [
            {"peer": "http://a", "way": "http", "accepted": 2, "known": 1, "seconds": 0.1,
             "refused": [{"code": "bad_signature", "reason": "signature refused", "count": 5}]},
        ],
        "failures": [{"peer": "http://b", "code": "stalled", "reason": "no answer", "seconds": 2.0}],
        "note": "the network was not searched: Kubo is off", "seconds": 2.0,
    },
}  # fmt: skip
HOSTILE: dict[str, Any] = {**FOUND["results"][1], "workload": "a|b<i>\x1b[31m\u202e", "device_name": "<script>"}
FOUND["results"][1] = HOSTILE
DONE: dict[str, Any] = {
    "model": ROOT,
    "beside": [
        {
            "signer": key(2).peer_id, "trusted": False, "task": "embedding", "workload": "encode-8x128",
            "settings": "batch=8", "precision": "f32", "ratio": 0.25, "most": 1.35, "verdict": "faster",
            "reason": "unlike ours: faster by 4.00 times, 1.35 at most are alike",
            "differs": ["torch 1 there, 2 here"],
            "claim": {
                "device": "cpu", "device_name": "<script>\x1b[31m", "engine": "torch", "cpu": "C", "cores": 8,
                "median_ns": 1_000_000, "low_ns": 900_000, "high_ns": 1_100_000, "per_s": 1.0, "unit": "tokens",
                "samples": 5, "created": 1, "envelope_cid": "bafyclaim",
            },
            "own": {
                "device": "cpu", "device_name": "C", "engine": "torch", "cpu": "C", "cores": 8,
                "median_ns": 4_000_000, "low_ns": 3_900_000, "high_ns": 4_100_000, "per_s": 1.0, "unit": "tokens",
                "samples": 5, "created": 1, "envelope_cid": "bafyown",
            },
        }
    ],
    "left_out": [{"device": "cpu", "workload": "fetch", "code": "not_run_again", "reason": "of the network"}] * 2,
    "rule": "The rule.",
    "inquiry": None,
}  # fmt: skip
FONTS = {"MPLCONFIGDIR": matplotlib.get_configdir()}  # where the list of fonts is made once, not for every home
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
        ROOT, "embedding", "cpu", "A Processor", "torch", "f32", "encode-8x128", "batch=8 length=128 tokens=1024", "3",
        "0", "1", "2.000", "0.500", "2.200", "512000", "tokens/s", "2.100", "1.995", "2.205", "487619",
    ]  # fmt: skip
    assert "\x1b" not in second
    assert "\u202e" not in second
    for told in (
        "12D3KooWb contradicted itself: its results are not counted",
        "1 claims are unlike: far from this machine's figure or the other keys' (--by-key says whose)",
        "http://a: 5 records refused: bad_signature: signature refused",
        "http://b: no answer: stalled: no answer",
        "the network was not searched: Kubo is off",
        "1 nodes answered, 1 did not; 2 new records",
    ):
        assert told in done.err.splitlines()
    assert (await run_cli(tmp_path, "results", ROOT, "--json")).json == FOUND


async def test_a_row_for_each_key(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT, "--by-key", "--csv")
    rows = [*csv.DictReader(io.StringIO(done.out))]
    assert [(row["who"], row["key"], row["unlike"]) for row in rows[:4]] == [
        ("own", key(1).peer_id, ""), ("claim", key(2).peer_id, ""), ("claim", key(3).peer_id, ""),
        ("claim", key(4).peer_id, "faster"),
    ]  # fmt: skip


async def test_csv_holds_no_formula(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT, "--csv")
    first, second = csv.DictReader(io.StringIO(done.out))
    assert (first["median_ms"], first["settings"]) == ("2.0", "batch=8 length=128 tokens=1024")
    assert second["device"] == "'=1+1 (<script>)"


async def test_markdown_is_escaped(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "results", ROOT, "--markdown")
    head, rule, first, second = done.out.splitlines()
    assert head.startswith("| device | cpu |")
    assert rule.count("---") == head.count(" | ") + 1
    assert "| 3 | 0 | 1 | 2.000 | 0.500 | 2.200 |" in first
    assert "a\\|b\\<i\\>" in second
    assert "<script>" not in second
    assert "\x1b" not in second


# -- files


async def test_plots_a_page_and_parquet_are_written_once(tmp_path: Path, daemon: Daemon) -> None:
    names = {"--plot": ("a.png", "b.SVG"), "--html": ("c.html",), "--parquet": ("d.parquet",)}
    files = [(option, tmp_path / name) for option, of in names.items() for name in of]
    options = [str(part) for pair in files for part in pair]
    done = await run_cli(tmp_path, "results", ROOT, *options, env=FONTS)
    assert done.code == 0, done.err
    for _, path in files:
        assert f"wrote {path}" in done.err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring((tmp_path / "b.SVG").read_bytes()).tag.endswith("svg")
    assert len(pyarrow.parquet.read_table(tmp_path / "d.parquet")) == 2
    html = (tmp_path / "c.html").read_text()
    assert "<script" not in html.replace("&lt;script", "")
    assert "http://b: no answer: stalled" in html
    before = {path: path.read_bytes() for _, path in files}
    asked = len(daemon.seen)
    again = await run_cli(tmp_path, "results", ROOT, "--html", str(tmp_path / "c.html"))
    assert (again.code, again.err.count("--force writes over it")) == (1, 1)
    assert len(daemon.seen) == asked  # nobody is asked for what cannot be written
    assert {path: path.read_bytes() for _, path in files} == before
    forced = await run_cli(tmp_path, "results", ROOT, *options, "--force", env=FONTS)
    assert forced.code == 0
    assert sorted(path.name for path in tmp_path.glob("?.*")) == ["a.png", "b.SVG", "c.html", "d.parquet"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--plot", "a.pdf"], 2, "a plot is a .png or a .svg"),
        (["--plot", "{tmp}/absent/a.png"], 1, "there is no directory"),
        (["--html", "{tmp}"], 1, "is a directory"),
        (["--parquet", "{tmp}/a.png", "--plot", "{tmp}/a.png"], 2, "the same file"),
        (["--quick"], 2, "--quick is for --verify"),
        (["--signer", "12D3KooWa"], 2, "--signer is for --verify"),
        (["--workload", "load"], 2, "--workload is for --verify"),
        (["--verify", "--by-key"], 2, "leave out --by-key"),
    ],
)
async def test_wrong_usage_asks_nobody(
    options: list[str], code: int, says: str, tmp_path: Path, daemon: Daemon
) -> None:
    done = await run_cli(tmp_path, "results", ROOT, *(option.format(tmp=tmp_path) for option in options))
    assert (done.code, says in done.err) == (code, True), done.err
    assert not daemon.seen


async def test_without_the_extra_nobody_is_asked(tmp_path: Path, daemon: Daemon) -> None:
    (hidden := tmp_path / "hidden").mkdir()
    for name in ("matplotlib", "pyarrow"):
        (hidden / f"{name}.py").write_text("raise ImportError")
    for option, extra in (("--plot", "plot"), ("--html", "plot"), ("--parquet", "parquet")):
        path = str(tmp_path / "out.png")
        done = await run_cli(tmp_path, "results", ROOT, option, path, env={"PYTHONPATH": str(hidden)})
        assert (done.code, f"pip install 'ipfs-accelerate-node[{extra}]'" in done.err) == (5, True), done.err
    assert not daemon.seen
    assert (await run_cli(tmp_path, "results", ROOT, env={"PYTHONPATH": str(hidden)})).code == 0


# -- run again


async def test_what_was_run_again_beside_what_is_claimed(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["POST", "/api/results/verify"] = (200, DONE)
    options = ("--verify", "--peer", "http://a", "--signer", key(2).peer_id, "--workload", "load", "--quick")
    done = await run_cli(tmp_path, "results", ROOT, *options, "--device", "cpu", "--csv")
    assert done.code == 0, done.err
    assert daemon.asked("POST", "/api/results/verify") == {
        "ref": ROOT, "peers": ["http://a"], "ask": True, "keys": [key(2).peer_id], "workloads": ["load"],
        "quick": True, "device": "cpu",
    }  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert (row["verdict"], row["ratio"], row["median_ms"], row["own_ms"]) == ("faster", "0.25", "1.0", "4.0")
    assert (row["key"], row["record"], row["own_record"]) == (key(2).peer_id, "bafyclaim", "bafyown")
    assert "\x1b" not in done.out
    lines = done.err.splitlines()
    assert "1 claims run again here: 1 faster; our records are kept here, not published" in lines
    assert lines.count("not run again: fetch on cpu: of the network") == 1
    assert "The rule." in lines
    assert (await run_cli(tmp_path, "results", ROOT, "--verify", "--json")).json == DONE


async def test_a_page_of_what_was_run_again(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["POST", "/api/results/verify"] = (200, DONE)
    daemon.answers["GET", f"{ASKED}&ask=no"] = (200, FOUND)
    done = await run_cli(tmp_path, "results", ROOT, "--verify", "--html", str(tmp_path / "page.html"), env=FONTS)
    assert done.code == 0, done.err
    html = (tmp_path / "page.html").read_text()
    assert "Claims run again here" in html
    assert "unlike ours: faster by 4.00 times" in html
    assert "\x1b" not in html


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
