"""`infer`, and the flags of `load`: what an argument becomes, and how an answer looks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.support.daemon import LOADED, ROOT, Daemon, run_cli

VECTOR = {"vector": [0.5, -0.25], "tokens_in": 3, "truncated": False}
WAVE = b"RIFF\x24\x00\x00\x00WAVEfmt "


def answer(*outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "minilm", "root": ROOT, "task": "embedding", "device": "cpu", "engine": "torch", "precision": "f32",
        "implementation": "REAL", "outputs": list(outputs), "tokens": 3, "seconds": 0.01, **more,
    }  # fmt: skip


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        running.answers["POST", "/api/infer"] = (200, answer(VECTOR))
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "blue").save(file, "PNG")
    path = tmp_path / "blue.png"
    path.write_bytes(file.getvalue())
    return path


async def items(tmp_path: Path, daemon: Daemon, *arguments: str, stdin: bytes = b"") -> list[Any]:
    """What `infer` sends for these arguments."""
    done = await run_cli(tmp_path, "infer", "minilm", *arguments, stdin=stdin)
    assert done.code == 0, done.err
    found: list[Any] = daemon.seen[-1].body["items"]
    return found


async def test_texts_files_and_standard_input(tmp_path: Path, daemon: Daemon, picture: Path) -> None:
    (tmp_path / "text.txt").write_text("from a file\n")
    assert await items(tmp_path, daemon, "one", "two words") == ["one", "two words"]
    assert await items(tmp_path, daemon, f"@{tmp_path}/text.txt") == ["from a file"]
    assert await items(tmp_path, daemon, f"{tmp_path}/text.txt") == [f"{tmp_path}/text.txt"]  # a text, not asked for
    assert await items(tmp_path, daemon, "-", "and", stdin=b"typed\nlines\n") == ["typed\nlines", "and"]
    assert await items(tmp_path, daemon, stdin=b"alone") == ["alone"]
    encoded = base64.b64encode(picture.read_bytes()).decode()
    for argument in (f"@{picture}", str(picture)):
        assert await items(tmp_path, daemon, argument) == [{"image": encoded}]
    assert await items(tmp_path, daemon, "-", stdin=picture.read_bytes()) == [{"image": encoded}]
    assert await items(tmp_path, daemon, "-", stdin=WAVE) == [{"audio": base64.b64encode(WAVE).decode()}]
    choice = await items(tmp_path, daemon, str(picture), "--label", "red", "--label", "blue")
    assert choice == [{"image": encoded, "labels": ["red", "blue"]}]


async def test_pairs_and_chats(tmp_path: Path, daemon: Daemon) -> None:
    pairs = await items(tmp_path, daemon, "--query", "who?", "a", "b")
    assert pairs == [{"first": "who?", "second": "a"}, {"first": "who?", "second": "b"}]
    (chat,) = await items(tmp_path, daemon, "--chat", "--system", "Be brief.", "Hello")
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert chat == {"messages": told}


async def test_what_is_wanted_is_sent(tmp_path: Path, daemon: Daemon) -> None:
    await run_cli(
        tmp_path, "infer", ROOT, "x", "--task", "embedding", "--device", "openvino:CPU", "--precision", "bf16",
        "--top-k", "3", "--temperature", "0.5", "--seed", "7", "--stop", "\n", "--max-new-tokens", "9", "--allow-mock",
    )  # fmt: skip
    body = daemon.seen[-1].body
    assert {name: body[name] for name in ("ref", "task", "device", "precision", "allow_mock")} == {
        "ref": ROOT, "task": "embedding", "device": "openvino:CPU", "precision": "bf16", "allow_mock": True,
    }  # fmt: skip
    assert body["options"] == {"top_k": 3, "temperature": 0.5, "seed": 7, "stop": ["\n"], "max_new_tokens": 9}


async def test_arguments_that_cannot_be(tmp_path: Path, daemon: Daemon) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for arguments in (
        ("minilm", "@/no/such/file"), ("minilm", f"@{tmp_path}/binary"), ("minilm", "-", "-"),
        ("minilm", "x", "--top-k", "0"), ("minilm", "x", "--temperature", "-1"), ("baf!", "x"),
    ):  # fmt: skip
        done = await run_cli(tmp_path, "infer", *arguments, stdin=b"")
        assert (done.code, len(done.err.splitlines())) == (2, 1), (arguments, done.err)
    assert daemon.seen == []


OUTPUTS: list[tuple[dict[str, Any], str]] = [
    (VECTOR, "[0.5, -0.25]\n"),
    ({"text": "two\nlines\x1b[2J", "ids": [1], "finish": "stop"}, "two\nlines\\x1b[2J\n"),
    ({"scores": [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}]}, "cat\t0.7500\ndog\t0.2500\n"),
    ({"entities": [{"label": "PER", "score": 1, "start": 0, "end": 3, "text": "Ada"}]}, "PER\tAda\t0-3\t1.0000\n"),
    ({"fills": [{"token": "cat", "token_id": 3, "score": 0.5, "text": "a cat"}]}, "cat\t0.5000\ta cat\n"),
]


@pytest.mark.parametrize(("output", "shown"), OUTPUTS, ids=lambda value: next(iter(value)) if value else "")
async def test_how_answers_look(tmp_path: Path, daemon: Daemon, output: dict[str, Any], shown: str) -> None:
    daemon.answers["POST", "/api/infer"] = (200, answer(output))
    done = await run_cli(tmp_path, "infer", "minilm", "x")
    assert (done.code, done.out, done.err) == (0, shown, "")
    assert (await run_cli(tmp_path, "infer", "minilm", "x", "--json")).json["outputs"] == [output]


async def test_a_mock_is_told(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["POST", "/api/infer"] = (200, answer(VECTOR, implementation="MOCK", warning="MOCK: a hash"))
    done = await run_cli(tmp_path, "infer", "mock:embedding", "x")
    assert "MOCK" in done.err
    assert json.loads(done.out) == [0.5, -0.25]


async def test_a_device_that_is_not_there_ends_with_5(tmp_path: Path, daemon: Daemon) -> None:
    problem = {"detail": "device cuda:0 is not available: no driver", "code": "device_unavailable", "exit_code": 5}
    for path, arguments in (("/api/infer", ("infer", ROOT, "x")), ("/api/loads", ("load", ROOT))):
        daemon.answers["POST", path] = (422, problem)
        done = await run_cli(tmp_path, *arguments, "--device", "cuda:0")
        assert (done.code, done.out) == (5, "")
        assert "no driver" in done.err


async def test_load_says_what_it_chose_among(tmp_path: Path, daemon: Daemon) -> None:
    choice = [
        {"device": "openvino:CPU", "precision": "f32", "median_ms": 3.0, "reason": "measured now", "chosen": True},
        {"device": "cpu", "precision": "f32", "median_ms": 9.0, "reason": "takes 3.00 × as long", "chosen": False},
        {"device": "cuda:0", "precision": "f32", "median_ms": None, "reason": "no driver", "chosen": False},
    ]
    loaded = {**LOADED, "task": "embedding", "choice": choice, "notes": ["a note"]}
    daemon.answers["POST", "/api/loads"] = (200, loaded)
    done = await run_cli(
        tmp_path, "load", ROOT, "--task", "embedding", "--precision", "f32", "--keep-alive", "-1", "--pin", "--as", "x"
    )
    assert done.code == 0, done.err
    assert daemon.seen[-1].body == {
        "ref": ROOT, "device": "auto", "precision": "f32", "task": "embedding", "keep_alive": -1.0, "pinned": True,
        "as": "x",
    }  # fmt: skip
    assert "choice  → openvino:CPU (f32): 3.00 ms, measured now\n" in done.out
    assert "choice    cpu (f32): 9.00 ms, takes 3.00 × as long\n" in done.out
    assert "choice    cuda:0 (f32): no driver\n" in done.out
    assert "note    a note" in done.out


async def test_on_another_node(tmp_path: Path, daemon: Daemon) -> None:
    claimed = {"peer": "12D3KooWPeer", "way": "tunnel", "claim": True}
    daemon.answers["POST", "/api/peers/infer"] = (200, answer({"text": "a\x1b[2Jb", "finish": "stop"}, **claimed))
    done = await run_cli(tmp_path, "infer", ROOT, "hello", "--peer", "12D3KooWPeer")
    assert done.code == 0
    assert done.out.startswith("a")
    assert "\x1b" not in done.out
    assert f"peer:12D3KooWPeer claims: REAL on cpu in f32, root {ROOT}" in done.err
    sent = daemon.seen[-1].body
    assert (sent["ref"], sent["items"], sent["peer"]) == (ROOT, ["hello"], "12D3KooWPeer")
    done = await run_cli(tmp_path, "infer", ROOT, "hello", "--peer", "x", "--allow-mock")
    assert done.code == 2
    assert "--allow-mock" in done.err
