"""kill -9 at random moments of add and pin: after each start all that is there verifies, without a manual step."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.node import COMMAND, NodeProcess

ROUNDS = 10


def rounds(tmp_path: Path, count: int) -> None:
    """Each round adds one model and pins another from a second node over HTTP, and dies somewhere in between."""
    noise = random.Random(int(os.environ.get("CRASH_SEED", "7")))
    (origin_cache := tmp_path / "origin").mkdir(mode=0o700)
    (cache := tmp_path / "victim").mkdir(mode=0o700)
    with NodeProcess(origin_cache) as origin:
        for number in range(count):
            added, pinned = (tmp_path / f"{kind}-{number}" for kind in ("added", "pinned"))
            for folder in (added, pinned):
                folder.mkdir()
                (folder / "weights").write_bytes(noise.randbytes(6 << 20))
                (folder / "config.json").write_bytes(noise.randbytes(300))
            root = origin.json("add", str(pinned))["root"]
            victim = NodeProcess(cache, "--peer", origin.url).start()
            jobs = [
                subprocess.Popen([*COMMAND, *job], env=victim.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for job in (("add", str(added), "--json"), ("pin", root, "--json"))
            ]
            death = threading.Timer(noise.uniform(0.0, 1.2), victim.kill)
            death.start()
            death.join()
            for job in jobs:
                job.wait(60)
            with NodeProcess(cache, "--peer", origin.url) as again:
                assert again.json("verify")["corrupt"] == [], f"round {number}"
                assert again.json("pin", root)["root"] == root  # what was cut off is finished by asking again
                assert again.json("add", str(added))["bytes_total"] == (6 << 20) + 300
                assert list((cache / "quarantine").glob("*")) == []


@pytest.mark.timeout(300)
def test_ten_rounds(tmp_path: Path) -> None:
    rounds(tmp_path, ROUNDS)


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_a_hundred_rounds(tmp_path: Path) -> None:
    rounds(tmp_path, 10 * ROUNDS)
