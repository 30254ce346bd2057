"""The benchmark of fetching works: every target runs once, small, and gives its ratio. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(600)]

CHECKOUT = Path(__file__).parents[1]
TARGETS = [f"tf{number}" for number in range(1, 8)]


def test_every_target_once(tmp_path: Path, figure: Callable[[str], None]) -> None:
    program = [sys.executable, str(CHECKOUT / "scripts" / "benchmarks" / "fetch.py")]
    ran = subprocess.run(
        [*program, "--json", "--mib", "8", "--rounds", "1", "--dir", str(tmp_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads(ran.stdout)
    for name in TARGETS:
        ratios = result[name]["ratios"]
        assert ratios, result[name]
        for what, entry in ratios.items():
            assert entry["value"] > 0 or name == "tf5", (name, what)
            target = f", target for 1 GiB {entry['target']}" if entry["target"] else ""
            figure(f"{name} {what}: {entry['value']:.3f} with 8 MiB{target}")
    assert result["tf1"]["absent"] == []
    assert result["tf6"]["seeded"], result["tf6"]["seed_note"]
    assert list(tmp_path.iterdir()) == []  # nothing of it stays
