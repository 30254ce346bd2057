"""The benchmark of asking peers works: once, small. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

PROGRAM = Path(__file__).parents[1] / "scripts" / "benchmarks" / "peers.py"


def test_one_round(tmp_path: Path, figure: Callable[[str], None]) -> None:
    small = ("--peers=12", "--dead=4", "--rounds=1", "--records=2000", "--models=10")
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", *small, f"--dir={tmp_path}"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stdout, ran.stderr[-4000:]
    result = json.loads(ran.stdout)
    assert result["tp1"]["dead_named"]
    assert result["tp2"]["records"] == 2000
    figure(f"peers: 12 asked, 4 dead: {result['tp1']['seconds']:.2f} s; query p99 {result['tp2']['p99_ms']:.1f} ms")
    assert list(tmp_path.iterdir()) == []  # nothing of it stays
