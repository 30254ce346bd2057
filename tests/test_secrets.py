"""Secrets leave through no log, error, reply or file but the ones that are for them (P9, security default 6)."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.support.hub import FakeHub
from tests.support.node import NodeProcess

HUB_TOKEN = "hf_canaryCanaryCanaryCanary"
KUBO_SECRET = "canary-kubo-password"


@pytest.mark.needs("linux")
@pytest.mark.timeout(90)
def test_no_canary_sings(cache: Path, tmp_path: Path) -> None:
    """Every command and a Hub that is not there, at the most talkative log level; then every byte that was written."""
    env = {
        "HF_TOKEN": HUB_TOKEN,
        "IPFS_ACCELERATE_NODE_KUBO_AUTH": f"basic:someone:{KUBO_SECRET}",
        "IPFS_ACCELERATE_NODE_HF_UPSTREAM": "http://127.0.0.1:9",
    }
    said: list[str] = []

    def ran(done: subprocess.CompletedProcess[str]) -> str:
        said.append(done.stdout + done.stderr)
        return done.stdout

    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    with NodeProcess(cache, "--log-level", "debug", env=env) as node:
        for arguments in (
            ("add", str(model), "--name", "m"),
            ("pin", "hf:org/private"),
            ("info", "m", "--json"),
            ("embed", "m", "text"),
            ("embed", "mock:embedding", "a prompt nobody may read in a log"),
            ("doctor", "--cache", str(cache), "--json"),
            ("up", "--kubo", f"http://user:{KUBO_SECRET}@127.0.0.1:1"),
        ):
            ran(node.cli(*arguments, check=False))
        shown = node.cli("keys", "add", "--scope", "infer", "--json").stdout
        key = shown.split('"key": "')[1].split('"')[0]
        ran(node.cli("keys", "ls", "--json"))
        admin = node.key
        assert stat.S_IMODE((cache / "daemon.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((cache / "keys.json").stat().st_mode) == 0o600
        assert admin in (cache / "daemon.json").read_text()
        assert node.process is not None
        arguments_seen = Path(f"/proc/{node.process.pid}/cmdline").read_text()
    log = node.log.read_text()
    everything = {"log": log, "output": "".join(said), "arguments": arguments_seen}
    everything |= {
        str(path.relative_to(cache)): path.read_bytes().decode("latin-1")
        for path in cache.rglob("*")
        if path.is_file() and path.name != "daemon.json"
    }
    for place, text in everything.items():
        for secret in (HUB_TOKEN, KUBO_SECRET, key, admin):
            assert secret not in text, place
    assert "nobody may read" not in log


@pytest.mark.needs("linux")
@pytest.mark.timeout(90)
async def test_a_callers_token_goes_to_the_hub_and_sings_nowhere_else(cache: Path, tmp_path: Path) -> None:
    """With a peer and a gateway that write down what they are asked, at the most talkative log level."""
    async with FakeHub([HUB_TOKEN]) as hub:
        files = {"config.json": b"{}", "model.safetensors": bytes(100_000)}
        hub.repo("org/open", files)
        hub.repo("org/private", files, readers=frozenset([HUB_TOKEN]))
        hub.repo("org/gated", files, gated=True)
        sources = ("--peer", hub.other, "--gateway", hub.other)
        node = NodeProcess(cache, "--hf-upstream", hub.url, "--log-level", "debug", *sources)
        try:
            await asyncio.to_thread(node.start)
            said = ""
            for repo in ("org/open", "org/private", "org/gated", "org/none"):
                for path in ("resolve/main/config.json", "resolve/main/model.safetensors", "resolve/no/config.json"):
                    said += await answer(f"{node.url}/{repo}/{path}")
                for path in ("", "/tree/main", "/refs", "/revision/no"):
                    said += await answer(f"{node.url}/api/models/{repo}{path}")
            for path in ("/api/whoami-v2", f"/api/models/org/open?token={HUB_TOKEN}", "/metrics"):
                said += await answer(node.url + path)
            assert node.process is not None
            arguments = Path(f"/proc/{node.process.pid}/cmdline").read_text()
            environment = Path(f"/proc/{node.process.pid}/environ").read_text()
        finally:
            await asyncio.to_thread(node.stop)
    assert any(seen.authorization == f"Bearer {HUB_TOKEN}" for seen in hub.asked("hub"))
    assert hub.asked("other")
    everything = {"answers": said, "arguments": arguments, "environment": environment, "log": node.log.read_text()}
    everything |= {f"request to {s.at}": f"{s.path} {s.headers}" for s in hub.seen if s.at != "hub"}
    everything |= {f"URL at {s.at}": s.path for s in hub.seen}
    for file in cache.rglob("*"):
        if file.is_file():
            everything[str(file)] = file.read_bytes().decode("latin-1")
    for place, text in everything.items():
        assert HUB_TOKEN not in text, place


async def answer(url: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Authorization": f"Bearer {HUB_TOKEN}"}) as reply,
    ):
        return f"{reply.headers} {(await reply.read()).decode('latin-1')}"
