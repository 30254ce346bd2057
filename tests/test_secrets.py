"""Secrets leave through no log, error, reply or file but the ones that are for them (P9, security default 6)."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

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
