"""Bad-input table L: what the command line does when arguments, daemon, terminal or configuration are not as hoped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ipfs_accelerate_node.cli.up import RedactSecrets
from tests.support.daemon import KEY, MODEL, ROOT, Daemon, job, run_cli, run_on_terminal, start_cli

CANARY = "canary-93f1c0"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        yield running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- L1: usage


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["pin", "--nope"], "ipfs-accelerate-node pin --help"),
        (["pin"], "ipfs-accelerate-node pin --help"),
        (["pin", ROOT, "extra"], "ipfs-accelerate-node pin --help"),
        (["nope"], "ipfs-accelerate-node --help"),
        (["keys", "add", "--scope", "root"], "ipfs-accelerate-node keys add --help"),
        (["keys", "add"], "ipfs-accelerate-node keys add --help"),
        (["keys", "nope"], "ipfs-accelerate-node keys --help"),
        (["embed", "m", "x", "--dimensions", "0"], "ipfs-accelerate-node embed --help"),
        (["add", "/no/such/directory"], "ipfs-accelerate-node add --help"),
        (["add", "/etc/passwd"], "ipfs-accelerate-node add --help"),
        (["add", "/tmp", "--move", "--upload"], "ipfs-accelerate-node add --help"),
        (["add", "/tmp", "--only-hash", "--announce"], "ipfs-accelerate-node add --help"),
        (["up", "--log-level", "loud"], "ipfs-accelerate-node up --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_l1_wrong_usage_is_one_line_with_a_hint(tmp_path: Path, arguments: list[str], hint: str) -> None:
    done = await run_cli(tmp_path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.rstrip().endswith(hint)


async def test_l1_no_command_shows_the_help(tmp_path: Path) -> None:
    for arguments in ([], ["keys"]):
        done = await run_cli(tmp_path, *arguments)
        assert (done.code, done.out) == (2, "")
        assert "Commands:" in done.err


@pytest.mark.parametrize(
    ("ref", "code"),
    [
        (ROOT[:-2], "invalid_cid"), ("bafksebhh7d53e", "hash_not_allowed"), ("", "invalid_cid"),
        (" " + ROOT, "invalid_cid"),
        ("../../etc/passwd", "invalid_path"), (f"/ipfs/{ROOT}/../x", "invalid_path"), ("a b", "invalid_reference"),
        ("x\x1b[31m", "invalid_reference"), ("Z" * 100_000, "invalid_cid"),
    ],
)  # fmt: skip
async def test_bad_references_are_refused_without_a_daemon(tmp_path: Path, ref: str, code: str) -> None:
    done = await run_cli(tmp_path, "pin", "--json", "--", ref)
    assert done.code == 2
    assert done.json["code"] == code
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err
    assert len(done.err) < 1000


async def test_the_end_of_line_that_a_shell_leaves_is_no_fault(tmp_path: Path, daemon: Daemon) -> None:
    assert (await run_cli(tmp_path, "info", ROOT + "\n", "--json")).code == 0


@pytest.mark.parametrize("name", ["a/b/c", "-x", ROOT, "mock:x", ""])
async def test_names_that_could_be_mistaken_are_refused(tmp_path: Path, daemon: Daemon, name: str) -> None:
    done = await run_cli(tmp_path, "pin", ROOT, f"--name={name}")
    assert done.code == 2
    assert daemon.seen == []


# -- L2: the daemon


async def test_l2_nobody_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = await run_cli(tmp_path, "ls", "--url", url)
    assert (done.code, done.out) == (5, "")
    assert url in done.err
    assert "ian up" in done.err
    assert done.err.count("\n") == 1


async def test_l2_a_daemon_that_has_died(tmp_path: Path) -> None:
    async with Daemon(tmp_path / "cache") as gone:
        pass
    done = await run_cli(tmp_path, "ls", "--json")
    assert done.code == 5
    assert done.json["url"] == gone.url
    assert str(tmp_path / "cache/daemon.json") in done.err


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(data: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.close()

    return handler


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


OTHERS = {
    "a web server": answering(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nhi!\n"),
    "another API": answering(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'),
    "a list": answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
    "a redirect": answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    "not HTTP": answering(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "one that hangs up": answering(b""),
    "one that says nothing": silent,
}


@pytest.mark.parametrize("handler", OTHERS.values(), ids=OTHERS.keys())
async def test_l2_another_service_on_the_port(tmp_path: Path, handler: Handler) -> None:
    async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done = await run_cli(tmp_path, "ls", env={"IPFS_ACCELERATE_NODE_URL": url, "IPFS_ACCELERATE_NODE_KEY": "k"})
    assert (done.code, done.out) == (5, "")
    assert url in done.err
    assert done.err.count("\n") == 1


async def test_l2_a_route_that_answers_html(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["GET", "/api/store"] = (502, "<html>Bad gateway</html>")
    done = await run_cli(tmp_path, "ls")
    assert done.code == 5
    assert daemon.url in done.err


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:1", "http://", f"http://u:{CANARY}@h", "http://h/path", "http://h:x", "http://[::1"]
)
async def test_l2_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    done = await run_cli(tmp_path, "ls", "--url", url)
    assert done.code == 2
    assert CANARY not in done.err


async def test_the_cache_key_goes_to_its_own_daemon_only(tmp_path: Path, daemon: Daemon) -> None:
    async with Daemon(tmp_path / "elsewhere") as other:
        await run_cli(tmp_path, "ls", "--url", other.url)
        await run_cli(tmp_path, "ls", "--url", daemon.url)
        await run_cli(tmp_path, "ls", "--cache", str(tmp_path / "elsewhere"))
        (key_file := tmp_path / "key").write_text("of-the-file\n")
        key_file.chmod(0o600)
        await run_cli(tmp_path, "ls", "--url", other.url, "--key-file", str(key_file))
        env = {"IPFS_ACCELERATE_NODE_KEY": "of-the-variable"}
        await run_cli(tmp_path, "ls", "--url", other.url, env=env)
        await run_cli(tmp_path, "ls", env=env)
    assert [seen.key for seen in other.seen] == [None, KEY, "of-the-file", "of-the-variable"]
    assert [seen.key for seen in daemon.seen] == [KEY, "of-the-variable"]


async def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, daemon: Daemon) -> None:
    (key_file := tmp_path / "key").write_text(CANARY)
    key_file.chmod(0o644)
    done = await run_cli(tmp_path, "ls", "--key-file", str(key_file))
    assert done.code == 2
    assert "chmod 600" in done.err
    assert CANARY not in done.err
    assert daemon.seen == []


@pytest.mark.parametrize(
    ("status", "problem", "code"),
    [
        (409, {"detail": "already running pid 7", "code": "already_running", "exit_code": 1}, 1),
        (401, {"detail": "no key", "code": "unauthorized", "exit_code": 1}, 1),
        (404, {"detail": "none", "code": "not_found", "exit_code": 3}, 3),
        (502, {"detail": "wrong bytes", "code": "hash_mismatch", "exit_code": 4}, 4),
        (422, {"detail": "no cuda:7", "code": "device_unavailable", "exit_code": 5}, 5),
        (404, {}, 3), (503, [], 5), (500, {"exit_code": 77}, 1), (400, {"exit_code": "4"}, 2),
    ],
)  # fmt: skip
async def test_the_daemons_problem_decides_the_exit_code(
    tmp_path: Path, daemon: Daemon, status: int, problem: object, code: int
) -> None:
    daemon.answers["GET", "/api/store"] = (status, problem)
    done = await run_cli(tmp_path, "ls")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)


# -- L4: signals and pipes


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_l4_a_signal_during_a_pin(tmp_path: Path, daemon: Daemon, sent: signal.Signals, code: int) -> None:
    daemon.states = [job("fetching", 100), None]
    process = await start_cli(tmp_path, "pin", ROOT)
    async with asyncio.timeout(15):
        await daemon.watched.wait()
        process.send_signal(sent)
        out, err = await process.communicate()
    assert (process.returncode, out) == (code, b"")
    assert b"Traceback" not in err
    if sent == signal.SIGINT:
        assert f"`ian pin {ROOT}` goes on" in err.decode()


async def test_l4_a_reader_that_leaves(tmp_path: Path, daemon: Daemon) -> None:
    models = [{**MODEL, "names": ["n" * 90]}] * 2000
    daemon.answers["GET", "/api/store"] = (200, {"models": models, "used_bytes": 0, "quota_bytes": None})
    for arguments in (["ls"], ["ls", "--json"], ["info", ROOT], ["--help"]):
        ours, theirs = os.pipe()
        os.close(ours)
        process = await start_cli(tmp_path, *arguments, stdout=theirs)
        os.close(theirs)
        async with asyncio.timeout(15):
            _, err = await process.communicate()
        assert process.returncode == 141, arguments
        assert b"Traceback" not in err
        assert b"BrokenPipe" not in err


# -- L5: secrets


@pytest.mark.parametrize("option", ["--token", "--hf-token", "--key", "--kubo-auth"])
@pytest.mark.parametrize("joined", [True, False])
async def test_l5_a_secret_on_the_command_line_is_refused(
    tmp_path: Path, daemon: Daemon, option: str, joined: bool
) -> None:
    given = [f"{option}={CANARY}"] if joined else [option, CANARY]
    for command in (["pin", ROOT], ["up"]):
        done = await run_cli(tmp_path, *command, *given)
        assert done.code == 2
        assert "HF_TOKEN" in done.err
        assert CANARY not in done.out + done.err
    assert daemon.seen == []


def test_no_secret_reaches_the_log() -> None:
    import logging

    shown = RedactSecrets(["hub-canary-1", "basic:me:kubo-canary-2", None])
    lines = [
        "token hf_abcdefghijklmnop", "Authorization: Bearer canary-3", "https://user:canary-4@host/path",
        "hub-canary-1", "me:kubo-canary-2", "GET https://cdn/x?X-Amz-Signature=canary-5&a=1&token=canary-6",
    ]  # fmt: skip
    text = "\n".join(shown.format(logging.LogRecord("n", 20, "f", 1, "%s", (line,), None)) for line in lines)
    assert "canary" not in text
    assert "hf_abc" not in text
    assert "a=1" in text


# -- L6: configuration


@pytest.mark.parametrize(
    ("text", "mode", "named"),
    [
        ("port = [", 0o644, "config.toml"), ("port = 1\nprot = 2", 0o644, "line 2"), ('port = "x"', 0o644, "line 1"),
        (f'hf_token = "{CANARY}"', 0o644, "chmod 600"), ('gateways = ["javascript:x"]', 0o644, "gateways"),
    ],
)  # fmt: skip
async def test_l6_a_bad_file_stops_up(tmp_path: Path, text: str, mode: int, named: str) -> None:
    (file := tmp_path / "config.toml").write_text(text)
    file.chmod(mode)
    done = await run_cli(tmp_path, "up", "--config", str(file))
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert CANARY not in done.err
    assert done.err.count("\n") == 1


async def test_l6_junk_in_flags_and_variables_stops_up(tmp_path: Path) -> None:
    done = await run_cli(tmp_path, "up", "--port", "many")
    assert (done.code, "--port" in done.err) == (2, True)
    done = await run_cli(tmp_path, "up", env={"IPFS_ACCELERATE_NODE_PORT": "many"})
    assert (done.code, "IPFS_ACCELERATE_NODE_PORT" in done.err) == (2, True)


# -- L7: terminals


async def test_l7_json_parses_in_any_locale(tmp_path: Path, daemon: Daemon) -> None:
    model = {**MODEL, "names": ["模型\x1b[31m\u202e"]}
    daemon.answers["GET", "/api/store"] = (200, {"models": [model], "used_bytes": 0, "quota_bytes": None})
    for env in ({"LANG": "C"}, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1"}):
        assert (await run_cli(tmp_path, "ls", "--json", env=env)).json["models"] == [model]
        plain = await run_cli(tmp_path, "ls", env=env)
        assert plain.code == 0
        assert "\x1b" not in plain.out
        assert "\u202e" not in plain.out


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("arguments", [["ls"], ["info", ROOT], ["pin", ROOT], ["embed", "m", "x"], ["keys", "ls"]])
async def test_l7_narrow_terminals(tmp_path: Path, daemon: Daemon, columns: int, arguments: list[str]) -> None:
    done = await run_on_terminal(tmp_path, *arguments, columns=columns, env={"NO_COLOR": "1", "LANG": "C"})
    assert done.code == 0, done.out
    assert "Traceback" not in done.out
    assert "\x1b[3" not in done.out  # colours; the bar moves the cursor all the same
    letters = "".join(done.out.split())
    assert "0.5000,-0.2500" in letters if arguments[0] == "embed" else "ab12" in letters or ROOT[:10] in letters


async def test_l7_foreign_text_does_not_drive_the_terminal(tmp_path: Path, daemon: Daemon) -> None:
    evil = "\x1b]0;owned\x07[red]x[/red]\u202e"
    daemon.answers["GET", "/api/store"] = (
        200,
        {"models": [{**MODEL, "names": [evil]}], "used_bytes": 0, "quota_bytes": None},
    )
    daemon.states = [job("fetching", 10, source=evil), job("failed", 10, error={"detail": evil, "exit_code": 1})]
    for arguments in (["ls"], ["pin", ROOT]):
        done = await run_on_terminal(tmp_path, *arguments, columns=200)
        assert "\x1b]0;" not in done.out
        assert "\u202e" not in done.out
        assert "owned" in done.out
        assert "Traceback" not in done.out


async def test_publishing_is_asked_for_on_a_terminal(tmp_path: Path, daemon: Daemon) -> None:
    refused = await run_on_terminal(tmp_path, "bench", ROOT, "--publish", typed=b"n\n")
    assert refused.code == 1
    assert '"samples_ns": [' in refused.out
    assert [seen.body["publish"] for seen in daemon.seen] == [False]
    agreed = await run_on_terminal(tmp_path, "bench", ROOT, "--publish", typed=b"y\n")
    assert agreed.code == 0
    assert [seen.body["publish"] for seen in daemon.seen] == [False, False, True]
    sure = await run_on_terminal(tmp_path, "bench", ROOT, "--publish", "--yes")
    standing = await run_on_terminal(tmp_path, "bench", ROOT, "--publish", env={"IPFS_ACCELERATE_NODE_PUBLISH": "1"})
    assert (sure.code, standing.code) == (0, 0)
    assert [seen.body["publish"] for seen in daemon.seen[3:]] == [True, True]
