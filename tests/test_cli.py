"""The command line as a process, against a real HTTP server that speaks the native routes."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import pytest

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.cli import COMMANDS, cli
from ipfs_accelerate_node.cli.render import clean, size
from tests.support.daemon import BENCH_RESULT, COMMAND, KEY, LOADED, MODEL, RECEIPT, ROOT, Daemon, job, run_cli

# What `ipfs add -r --only-hash` of Kubo 0.43.1 (profile unixfs-v1-2025) printed for `model_directory`.
MODEL_ROOT = "bafybeiecir5rvthj2lekgiv2u6gda6cqkt7lprrtsc7dstkmbjvc36mr6u"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "1_Pooling/config.json").write_bytes(b"pool")
    (folder / "weights").write_bytes(bytes(3_000_000))
    (folder / ".hidden").write_bytes(b"x")
    return folder


# -- help


def test_help_is_quick() -> None:
    """In time on the processor, of which one run has nothing but its own; it waits for nothing else."""

    def once() -> float:
        process = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert min(once() for _ in range(5)) <= 0.2


def test_help_imports_click_and_little_else() -> None:
    asked = [sys.executable, "-X", "importtime", "-m", "ipfs_accelerate_node", "--help"]
    imported = subprocess.run(asked, capture_output=True, text=True, check=True).stderr
    names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
    heavy = ("aiohttp", "rich", "msgspec", "torch", "transformers", "numpy", "http.client", "asyncio", "tomllib")
    assert not {name for name in names if name.startswith(heavy)}
    assert not {name for name in names if name.startswith("ipfs_accelerate_node.")} - {
        "ipfs_accelerate_node.__main__", "ipfs_accelerate_node.cli", "ipfs_accelerate_node.errors",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_commands_say(name: str) -> None:
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").startswith(COMMANDS[name][1].rstrip("."))
        assert "--help" in command.get_help(click.Context(command, parent=ctx, info_name=name))


def commands(group: click.Group, path: str = "") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found += commands(command, f"{path}{name} ") if isinstance(command, click.Group) else [(path + name, command)]
    return found


def test_json_is_everywhere() -> None:
    for path, command in commands(cli):
        assert "--json" in [flag for parameter in command.params for flag in parameter.opts], path


async def test_version_and_completion(tmp_path: Path) -> None:
    done = await run_cli(tmp_path, "--version")
    assert (done.code, done.out.strip()) == (0, f"ipfs-accelerate-node, version {__version__}")
    completion = await run_cli(tmp_path, env={"_IPFS_ACCELERATE_NODE_COMPLETE": "bash_source"})
    assert "complete -o nosort" in completion.out


async def test_references_complete_from_the_store(tmp_path: Path, daemon: Daemon) -> None:
    env = {
        "_IPFS_ACCELERATE_NODE_COMPLETE": "bash_complete",
        "COMP_WORDS": "ipfs-accelerate-node info mi",
        "COMP_CWORD": "2",
    }
    assert (await run_cli(tmp_path, env=env)).out == "plain,minilm\n"
    (tmp_path / "cache/daemon.json").unlink()
    assert (await run_cli(tmp_path, env=env | {"IPFS_ACCELERATE_NODE_PORT": "1"})).out == "\n"


# -- commands


async def test_add_sends_the_absolute_path(tmp_path: Path, daemon: Daemon, model_directory: Path) -> None:
    done = await run_cli(tmp_path, "add", str(model_directory), "--name", "org/name", "--announce", "--move")
    assert (done.code, done.err) == (0, "")
    assert daemon.asked("POST", "/api/add") == {
        "path": str(model_directory), "name": "org/name", "announce": True, "move": True,
    }  # fmt: skip
    assert done.out.splitlines()[0] == f"root       {ROOT}"
    assert "note       served over HTTP only; Kubo is off" in done.out
    assert "from       http://peer:8090: 90 MB in 12 requests, 1 rejected" in done.out
    assert (await run_cli(tmp_path, "add", str(model_directory), "--json")).json == RECEIPT


async def test_add_uploads(tmp_path: Path, daemon: Daemon, model_directory: Path) -> None:
    odd = 'ä "quoted" % name'
    (model_directory / odd).write_bytes(b"odd")
    done = await run_cli(tmp_path, "add", str(model_directory), "--upload", "--name", "minilm", "--json")
    assert done.json == RECEIPT
    assert daemon.form == {"name": "minilm", "announce": "false"}
    from urllib.parse import unquote

    assert {unquote(name): len(content) for name, content in daemon.uploaded.items()} == {
        "config.json": 2, "1_Pooling/config.json": 4, "weights": 3_000_000, odd: 3,
    }  # fmt: skip


async def test_an_upload_that_is_refused_early_says_why(tmp_path: Path, daemon: Daemon, model_directory: Path) -> None:
    (model_directory / "large").write_bytes(bytes(20_000_000))
    daemon.answers["POST", "/api/add"] = (507, {"detail": "no room", "code": "quota_exceeded", "exit_code": 1})
    done = await run_cli(tmp_path, "add", str(model_directory), "--upload")
    assert (done.code, done.out) == (1, "")
    assert "no room" in done.err


@pytest.mark.parametrize("kind", ["symlink", "fifo", "empty"])
async def test_what_an_upload_cannot_carry_is_refused(
    tmp_path: Path, daemon: Daemon, model_directory: Path, kind: str
) -> None:
    odd = model_directory / "odd"
    if kind == "symlink":
        odd.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.mkdir()
    done = await run_cli(tmp_path, "add", str(model_directory), "--upload")
    assert done.code == 2
    assert "odd" in done.err
    assert daemon.seen == []


async def test_only_hash_needs_no_daemon(tmp_path: Path, model_directory: Path) -> None:
    done = await run_cli(tmp_path, "add", str(model_directory), "--only-hash", "--json")
    assert done.json == {"root": MODEL_ROOT, "bytes_total": 3_000_006, "files": 3}
    assert MODEL_ROOT in (await run_cli(tmp_path, "add", str(model_directory), "--only-hash")).out


async def test_pin_watches_to_the_end(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "pin", f"ipfs://{ROOT}", "--name", "minilm", "--no-announce", "--source", "http://h")
    assert done.code == 0
    assert daemon.asked("POST", "/api/pins") == {
        "ref": ROOT, "name": "minilm", "announce": False, "source": "http://h",
    }  # fmt: skip
    assert done.err.splitlines() == [
        "fetching: 0 B of 1 kB from kubo",
        "fetching: 500 B of 1 kB from kubo",
        "pinned: 1 kB of 1 kB",
    ]
    assert f"root       {ROOT}" in done.out
    assert "seeded     no" in done.out
    quiet = await run_cli(tmp_path, "pin", ROOT, "--json")
    assert (quiet.json, quiet.err) == (RECEIPT, "")


async def test_pin_of_what_is_here_asks_for_no_events(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["POST", "/api/pins"] = (202, job("pinned", 1000))
    assert (await run_cli(tmp_path, "pin", ROOT, "--json")).json == RECEIPT
    assert len(daemon.seen) == 1


@pytest.mark.parametrize(("code", "exit_code"), [("hash_mismatch", 4), ("truncated", 5), ("not_found", 3)])
async def test_a_pin_that_fails_ends_with_its_own_code(
    tmp_path: Path, daemon: Daemon, code: str, exit_code: int
) -> None:
    problem = {"detail": f"http://gateway: {code} of bafy", "code": code, "exit_code": exit_code, "status": 502}
    daemon.states = [job("fetching", 10), job("failed", 10, error=problem)]
    done = await run_cli(tmp_path, "pin", ROOT)
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.splitlines()[-1] == f"ipfs-accelerate-node: http://gateway: {code} of bafy"
    told = await run_cli(tmp_path, "pin", ROOT, "--json")
    assert told.json["code"] == code


async def test_a_daemon_that_stops_during_a_pin_is_unavailable(tmp_path: Path, daemon: Daemon) -> None:
    daemon.states = [job("fetching", 10)]
    done = await run_cli(tmp_path, "pin", ROOT)
    assert done.code == 5
    assert "what is verified is kept" in done.err


ROUTES: list[tuple[tuple[str, ...], tuple[str, str], Any]] = [
    (("unpin", ROOT), ("DELETE", f"/api/pins/{ROOT}"), {**MODEL, "pinned": False}),
    (("unpin", "minilm"), ("DELETE", "/api/pins/minilm"), {**MODEL, "pinned": False}),
    (("rm", ROOT, "--force"), ("DELETE", f"/api/store/{ROOT}?force=true"), {"root": ROOT, "freed_bytes": 1_234_567}),
    (("gc",), ("POST", "/api/gc"), {"models": [ROOT], "freed_bytes": 5}),
    (("verify",), ("POST", "/api/verify"), {"files_checked": 3, "bytes_checked": 90, "corrupt": []}),
    (("load", ROOT, "--as", "x"), ("POST", "/api/loads"), LOADED),
    (("unload", "org/name"), ("DELETE", "/api/loads/org%2Fname"), {"unloaded": "org/name"}),
    (("keys", "add", "--scope", "infer"), ("POST", "/api/keys"), None),
    (("keys", "ls"), ("GET", "/api/keys"), None),
    (("keys", "rm", "ab12"), ("DELETE", "/api/keys/ab12"), {"removed": "ab12"}),
    (("bench", ROOT, "--publish"), ("POST", "/api/benchmarks"), None),
]


@pytest.mark.parametrize(("arguments", "route", "reply"), ROUTES, ids=lambda value: " ".join(map(str, value or ())))
async def test_each_command_uses_its_route_with_the_admin_key(
    tmp_path: Path, daemon: Daemon, arguments: tuple[str, ...], route: tuple[str, str], reply: Any
) -> None:
    done = await run_cli(tmp_path, *arguments)
    assert (done.code, done.out != "") == (0, True), done.err
    (seen,) = daemon.seen
    assert (seen.method, seen.path.replace("org/name", "org%2Fname"), seen.key) == (*route, KEY)
    as_json = await run_cli(tmp_path, *arguments, "--json")
    assert as_json.json == reply or reply is None


async def test_ls_and_info(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "ls")
    assert done.out == f"{ROOT}\t90.9 MB\t2\tpinned\tminilm\n"
    assert done.err == "1 models, 90.9 MB of 200 MB\n"
    assert (await run_cli(tmp_path, "ls", "--json")).json["models"] == [MODEL]
    shown = await run_cli(tmp_path, "info", "org/name")
    assert "loaded   ready on cpu, REAL" in shown.out
    assert f"config.json\t2 B\t{'00' * 32}\tbafkqaaa" in shown.out
    assert daemon.seen[-1].path in ("/api/store/org/name", "/api/store/org%2Fname")
    await run_cli(tmp_path, "info", f"/ipfs/{ROOT}/1_Pooling")
    assert daemon.seen[-1].path.endswith(f"{ROOT}%2F1_Pooling") or daemon.seen[-1].path.endswith(f"{ROOT}/1_Pooling")


async def test_verify_ends_with_4_when_something_is_corrupt(tmp_path: Path, daemon: Daemon) -> None:
    bad = {"cid": "bafk", "paths": [f"{ROOT}/weights"], "roots": [ROOT], "reason": "leaf 3 differs"}
    report = {"files_checked": 3, "bytes_checked": 90, "corrupt": [bad]}
    daemon.answers["POST", "/api/verify"] = (200, report)
    done = await run_cli(tmp_path, "verify")
    assert done.code == 4
    assert f"corrupt  {ROOT}/weights: leaf 3 differs" in done.out
    as_json = await run_cli(tmp_path, "verify", ROOT, "--json")
    assert (as_json.code, as_json.json) == (4, report)
    assert daemon.seen[-1].body == {"ref": ROOT}


async def test_embed_prints_one_json_array_per_line_in_input_order(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "embed", "minilm", "one", "two", "--dimensions", "5")
    assert daemon.asked("POST", "/v1/embeddings") == {"model": "minilm", "input": ["one", "two"], "dimensions": 5}
    assert [json.loads(line)[2] for line in done.out.splitlines()] == [0, 1]
    assert done.err == ""
    piped = await run_cli(tmp_path, "embed", "minilm", stdin=b"one\r\ntwo\nthree")
    assert daemon.seen[-1].body["input"] == ["one", "two", "three"]
    assert len(piped.out.splitlines()) == 3
    texts = await run_cli(tmp_path, "embed", "minilm", "--json", "--", "--token", "--json")
    assert daemon.seen[-1].body["input"] == ["--token", "--json"]
    assert texts.json["object"] == "list"


async def test_embed_waits_while_the_model_loads(tmp_path: Path, daemon: Daemon) -> None:
    daemon.loading = 2
    assert (await run_cli(tmp_path, "embed", "minilm", "one")).code == 0
    assert len(daemon.seen) == 3


async def test_embed_says_that_a_mock_is_a_mock(tmp_path: Path, daemon: Daemon) -> None:
    mock = {"data": [{"index": 0, "embedding": [1.0]}], "implementation": "MOCK"}
    daemon.answers["POST", "/v1/embeddings"] = (200, mock)
    assert "MOCK" in (await run_cli(tmp_path, "embed", "mock:embedding", "x")).err


async def test_errors_of_openai_routes_have_exit_codes_too(tmp_path: Path, daemon: Daemon) -> None:
    error = {"error": {"message": "no such model", "code": "model_not_found", "type": "invalid_request_error"}}
    daemon.answers["POST", "/v1/embeddings"] = (404, error)
    done = await run_cli(tmp_path, "embed", "minilm", "x")
    assert (done.code, done.err) == (3, "ipfs-accelerate-node: no such model\n")


async def test_bench_says_what_it_measured_and_where_it_is(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "bench", "minilm", "--publish")  # no terminal: --publish is the consent
    assert daemon.asked("POST", "/api/benchmarks") == {"ref": "minilm", "publish": True}
    assert "time       2.5 ms, median of 3; p95 2.95 ms" in done.out
    assert "rate       1200 tokens/s" in done.out
    assert "more       first token 1.25 ms, per token 0.5 ms" in done.out
    assert "published  yes" in done.out
    assert "envelope   bafyenvelope" in done.out
    assert "left out: pp512 on cpu: the model takes 128 (too_long)" in done.err
    assert "on cpu: loading\n" in done.err
    assert "tg32 on cpu: measuring 4 of 5\n" in done.err
    told = await run_cli(tmp_path, "bench", "minilm", "--json")
    assert "measuring" not in told.err


async def test_bench_says_what_waits_for_kubo(tmp_path: Path, daemon: Daemon) -> None:
    waits = {**BENCH_RESULT, "published": False, "queued": True, "note": "published as soon as Kubo is there"}
    daemon.answers["POST", "/api/benchmarks"] = (200, {"results": [waits], "left_out": []})
    done = await run_cli(tmp_path, "bench", "minilm", "--publish")
    assert "published  queued" in done.out
    assert "as soon as Kubo is there" in done.err


async def test_bench_of_several_is_a_table(tmp_path: Path, daemon: Daemon) -> None:
    busy = {**BENCH_RESULT, "published": False, "note": "machine busy: others"}
    daemon.answers["POST", "/api/benchmarks"] = (200, {"results": [BENCH_RESULT, busy], "left_out": []})
    wanted = ("--device", "all", "--precision", "bf16", "--workload", "tg32", "--workload", "load", "--quick")
    done = await run_cli(tmp_path, "bench", "minilm", "--task", "text-generation", *wanted, "--even-if-busy")
    assert daemon.asked("POST", "/api/benchmarks") == {
        "ref": "minilm", "publish": False, "device": "all", "task": "text-generation", "precision": "bf16",
        "quick": True, "even_if_busy": True, "workloads": ["tg32", "load"],
    }  # fmt: skip
    first, second = done.out.splitlines()
    assert first.split("\t")[:7] == ["tg32", "cpu", "torch", "f32", "2.5", "2.95", "1200 tokens/s"]
    assert second.split("\t")[-2:] == ["no", "bafyenvelope"]
    assert "tg32: machine busy: others" in done.err


async def test_what_a_busy_machine_measured_is_never_published(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "bench", "minilm", "--publish", "--even-if-busy")
    assert (done.code, daemon.seen) == (2, [])


async def test_a_key_is_shown_once(tmp_path: Path, daemon: Daemon) -> None:
    done = await run_cli(tmp_path, "keys", "add", "--scope", "infer", "--scope", "metrics", "--name", "laptop")
    assert daemon.asked("POST", "/api/keys") == {"scopes": ["infer", "metrics"], "name": "laptop"}
    assert "key     ian_new" in done.out
    assert "ian_new" not in (await run_cli(tmp_path, "keys", "ls")).out


def test_sizes_have_three_digits() -> None:
    counts = [0, 999, 1000, 999_499, 999_500, 90_900_000, 123_456_789, 10**15, None]
    assert [size(count) for count in counts] == [
        "0 B", "999 B", "1 kB", "999 kB", "1 MB", "90.9 MB", "123 MB", "1000 TB", "?",
    ]  # fmt: skip


def test_foreign_text_is_escaped() -> None:
    assert clean("\x1b[31mred\u202e\n") == "\\x1b[31mred\\u202e\\n"
    assert clean("模型 ä") == "模型 ä"


def test_every_command_module_is_listed() -> None:
    for name, (module, _) in COMMANDS.items():
        assert hasattr(importlib.import_module(f"ipfs_accelerate_node.cli.{module}"), name.replace("-", "_"))


async def test_events_that_come_in_pieces(tmp_path: Path, daemon: Daemon) -> None:
    daemon.states = [job("fetching", number) for number in range(0, 1000, 7)] + [job("pinned", 1000)]
    done, other = await asyncio.gather(run_cli(tmp_path, "pin", ROOT), run_cli(tmp_path, "pin", ROOT, "--json"))
    assert (done.code, other.json) == (0, RECEIPT)
    assert len(done.err.splitlines()) == 11
