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
CALLERS = "hf_anotherCanaryOfACaller"
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


@pytest.mark.needs("linux")
@pytest.mark.timeout(150)
async def test_two_tokens_through_a_whole_story(cache: Path, tmp_path: Path) -> None:
    """The node's own and a caller's: a gated model pinned, shared, hydrated and told of; a private one through the
    endpoint; redirects to another origin; failures. Then every byte that was said, written, sent or can be listed."""
    files = {"config.json": b"{}", "model.safetensors": bytes(100_000)}
    said: list[str] = []
    async with FakeHub([HUB_TOKEN, CALLERS], one_origin=True) as hub:
        hub.repo("org/gated", files, gated=True, accepted=frozenset([HUB_TOKEN]))
        hub.repo("org/private", files, readers=frozenset([CALLERS]))
        hub.repo("org/public", {"config.json": b"public", "model.safetensors": bytes(200_000)})
        hub.repo("org/away", {**files, "away.bin": b"else"}, readers=frozenset([HUB_TOKEN, CALLERS]))
        hub.always["away.bin"] = f"location:{hub.other}/away"
        sources = ("--peer", hub.other, "--gateway", hub.other, "--log-level", "debug")
        node = NodeProcess(cache, "--hf-upstream", hub.url, *sources, env={"HF_TOKEN": HUB_TOKEN})

        async def ran(*arguments: str) -> int:
            done = await asyncio.to_thread(node.cli, *arguments, check=False)
            said.append(done.stdout + done.stderr)
            return done.returncode

        try:
            await asyncio.to_thread(node.start)
            assert await ran("pin", "hf:org/gated", "--name", "gated") == 0
            assert await ran("share", "hf:org/gated") == 0
            assert await ran("hydrate", "hf:org/gated", "--cache-dir", str(tmp_path / "hydrated")) == 0
            for command in (("publish", "hf:org/gated"), ("audit", "hf:org/gated"), ("info", "gated", "--json")):
                await ran(*command)
            for failing in ("hf:org/private", "hf:org/none", "hf:org/away"):
                assert await ran("pin", failing, "--json") != 0
                await ran("load", failing, "--task", "embedding")
            await ran("doctor", "--cache", str(cache), "--json")
            for repo in ("org/public", "org/private", "org/gated", "org/away", "org/none"):
                for path in (*files, "away.bin"):
                    said.append(await answer(f"{node.url}/{repo}/resolve/main/{path}", CALLERS))
                said.append(await answer(f"{node.url}/api/models/{repo}/tree/main", CALLERS))
            said.append(await answer(f"{node.url}/api/whoami-v2", CALLERS))
            assert node.process is not None
            await asyncio.to_thread(node.request, "GET", "/api/accelerators")
            await ran("load", "mock:embedding")
            own, *workers = family(node.process.pid)
            assert workers
            said += [Path(f"/proc/{pid}/cmdline").read_text() for pid in (own, *workers)]
            said += [Path(f"/proc/{pid}/environ").read_text() for pid in workers]
        finally:
            await asyncio.to_thread(node.stop)
    for token in (HUB_TOKEN, CALLERS):
        assert any(seen.authorization == f"Bearer {token}" for seen in hub.asked("hub")), "it was used"
    assert hub.asked("other"), "others were asked"
    everything = {f"said {number}": text for number, text in enumerate(said)} | {"log": node.log.read_text()}
    everything |= {f"to {seen.at}: {seen.path}": f"{seen.path} {seen.headers}" for seen in hub.asked("other")}
    everything |= {f"URL {seen.path}": seen.path for seen in hub.seen}
    for folder in (cache, tmp_path / "hydrated"):
        written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert written
        everything |= {str(path): content.decode("latin-1") for path, content in written.items()}
    for place, text in everything.items():
        for token in (HUB_TOKEN, CALLERS):
            assert token not in text, place


def family(pid: int) -> list[int]:
    """A process and all below it, whichever of its threads began them."""
    below = [
        int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()
    ]
    return [pid, *(further for child in below for further in family(child))]


async def answer(url: str, token: str = HUB_TOKEN) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Authorization": f"Bearer {token}"}) as reply,
    ):
        return f"{reply.headers} {(await reply.read()).decode('latin-1')}"
