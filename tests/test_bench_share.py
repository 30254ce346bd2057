"""The benchmark of giving beside inference works: once, small, with the real model. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).parents[1] / "scripts" / "benchmarks" / "share.py"


def test_one_round(tmp_path: Path, figure: Callable[[str], None]) -> None:
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", "--mib=64", "--rounds=1", "--requests=50", f"--dir={tmp_path}"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads(ran.stdout)
    assert (result["implementation"], len(result["rounds"])) == ("REAL", 1)
    only = result["rounds"][0]
    assert only["idle"]["requests"] == only["pulled"]["requests"] == 50
    assert only["pulled_bytes"] > 0
    figure(f"share: p99 under pull to idle {result['ratio']:.2f} at {result['pull_mb_s']:.0f} MB/s, target 2.0 at 100")
    assert list(tmp_path.iterdir()) == []  # nothing of it stays
