"""`doctor` over a real file system, with a daemon and without, and with what breaks a node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, start_cli
from tests.support.hub import FakeHub

CANARY = "canary-93f1c0"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "cache") as running:
        yield running


@pytest.mark.timeout(60)
async def test_doctor_without_a_daemon(tmp_path: Path) -> None:
    env = {
        "HF_TOKEN": CANARY,
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://127.0.0.1:7777",
        "IPFS_ACCELERATE_NODE_PORT": "7777",
    }
    process = await start_cli(tmp_path, "doctor", "--json", env=env)
    async with asyncio.timeout(50):
        out, err = await process.communicate()
    told = json.loads(out)
    findings = {finding["name"]: finding for finding in told["findings"]}
    assert err == b""
    assert (process.returncode == 0) == told["healthy"]
    assert CANARY.encode() not in out
    assert findings["Hub token"]["found"] == "there is one, from HF_TOKEN; not checked, as offline mode is on"
    assert findings["HF_ENDPOINT"]["found"].endswith("right for Hugging Face tools")
    assert (findings["daemon"]["state"], findings["daemon"]["mend"]) == ("missing", "start it with: ian up")
    assert {"program", "settings", "disk", "port", "Kubo", "accelerators"} <= findings.keys()
    assert all(finding["mend"] for finding in findings.values() if finding["state"] != "ok")


@pytest.mark.timeout(60)
async def test_doctor_finds_what_is_broken(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").write_text("a file")
    (tmp_path / ".config/ipfs-accelerate-node").mkdir(parents=True)
    (tmp_path / ".config/ipfs-accelerate-node/config.toml").write_text("prot = 1")
    process = await start_cli(tmp_path, "doctor", "--cache", str(cache))
    async with asyncio.timeout(50):
        out, _ = await process.communicate()
    lines = out.decode().splitlines()
    assert process.returncode == 1
    assert any(line.startswith("broken   settings") and "line 1" in line for line in lines)
    assert any(line.startswith("broken   disk") for line in lines)


@pytest.mark.timeout(60)
async def test_doctor_sees_the_running_daemon(tmp_path: Path, daemon: Daemon) -> None:
    daemon.answers["GET", "/readyz"] = (200, {"ready": True, "degraded": ["Kubo is off: \x1b[31m"], "kubo": "off"})
    process = await start_cli(tmp_path, "doctor")
    async with asyncio.timeout(50):
        out, _ = await process.communicate()
    assert f"{daemon.url} runs without: Kubo is off: \\x1b[31m" in out.decode()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"door": {"state": "open", "reason": None}, "dial": "12D3", "tunnels": [{}]},
            "others dial 12D3; 1 reached now",
        ),
        ({"door": {"state": "waiting", "reason": "no\x1b mounts"}, "tunnels": []}, "cannot come in: no\\x1b mounts"),
        ({"door": "ajar"}, None),
    ],
    ids=["open", "shut", "nonsense"],
)
async def test_doctor_says_whether_others_can_come_in(
    tmp_path: Path, daemon: Daemon, told: dict[str, object], line: str | None
) -> None:
    daemon.answers["GET", "/readyz"] = (200, {"ready": True, "degraded": []})
    daemon.answers["GET", "/api/peers"] = (200, told)
    process = await start_cli(tmp_path, "doctor")
    async with asyncio.timeout(50):
        out, _ = await process.communicate()
    lines = [shown for shown in out.decode().splitlines() if " peers: " in shown]
    assert (line is None) == (not lines)
    assert line is None or line in lines[0]


@pytest.mark.timeout(60)
async def test_doctor_looks_at_the_cache_that_was_named_also_without_settings(tmp_path: Path) -> None:
    process = await start_cli(tmp_path, "doctor", "--json", env={"IPFS_ACCELERATE_NODE_PORT": "no number"})
    async with asyncio.timeout(50):
        out, _ = await process.communicate()
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert findings["settings"]["state"] == "broken"
    assert findings["disk"]["found"].endswith(str(tmp_path / "cache"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("known", "state", "said"),
    [([CANARY], "ok", "takes it, of someone"), ([], "missing", "refuses it: invalid or expired")],
)
async def test_doctor_asks_the_hub_about_the_token(tmp_path: Path, known: list[str], state: str, said: str) -> None:
    async with FakeHub(known) as hub:
        env = {"HF_TOKEN": CANARY, "IPFS_ACCELERATE_NODE_HF_UPSTREAM": hub.url}
        process = await start_cli(tmp_path, "doctor", "--json", env=env)
        async with asyncio.timeout(50):
            out, err = await process.communicate()
        [finding] = [f for f in json.loads(out)["findings"] if f["name"] == "Hub token"]
        assert (finding["state"], said in finding["found"]) == (state, True)
        assert CANARY.encode() not in out + err
        assert {seen.path for seen in hub.seen} == {"/api/whoami-v2"}
