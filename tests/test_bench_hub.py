"""The benchmark of the endpoint works: every part runs once, small. What is right or wrong is asserted, no time is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.sample import SAMPLE

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]

PROGRAM = Path(__file__).parents[1] / "scripts" / "benchmarks" / "hub.py"


def test_every_part_once(tmp_path: Path, figure: Callable[[str], None]) -> None:
    sizes = ("--mib", "40", "--rounds", "1", "--requests", "20")
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", *sizes, "--model", str(SAMPLE), "--dir", str(tmp_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads(ran.stdout)
    lines = {part: result[part] for part in ("first", "warm", "crowd", "corrupt")}
    for line in [line for part in lines.values() for line in part]:
        if isinstance(line["figure"], float):
            figure(f"{line['what']}: {line['figure']:.2f} {line['unit']} (target {line['target']})")
    assert [line["figure"] for line in lines["corrupt"]] == ["wrong bytes", "an error", "right bytes"]
    assert [line["figure"] for line in lines["crowd"]] == [1.0]
    assert len(lines["first"]) == 3
    assert len(lines["warm"]) == 15
    assert list(tmp_path.iterdir()) == []  # nothing of it stays
