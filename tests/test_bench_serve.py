"""The benchmark of serving works: every part once, at the smallest size, without rivals. No time is asserted, but that
each line has figures, and that the work was that of torch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample import made

pytestmark = [pytest.mark.model("smollm2-135m"), pytest.mark.timeout(600)]

PROGRAM = Path(__file__).parents[1] / "scripts" / "benchmarks" / "serve.py"
SMALLEST = ("--rounds=1", "--requests=8", "--texts=16", "--seconds=1.5", "--shapes=20", "--tokens=4")
LINES = {"TS1": 2, "TS2": 2, "TS3": 2, "TS4": 2, "TS5b": 2, "TS9": 2}  # at least
NEAR = {"ours f32": 0.9999, "ours bf16": 0.999, "raw OpenVINO loop f32": 0.9999, "raw OpenVINO loop bf16": 0.999}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    parts = f"--only={','.join(sorted({name.lower() for name in LINES}))}"
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", "--no-rivals", *SMALLEST, parts, f"--dir={folder}"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert list(folder.iterdir()) == []  # nothing of it stays
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_every_line_has_figures(result: dict[str, Any], figure: Callable[[str], None]) -> None:
    lines = result["lines"]
    narrow = not any(name.startswith("ours bf16") for name in result["absent"])  # this machine computes in it
    for id, least in LINES.items():
        found = [line for line in lines if line["id"] == id]
        assert len(found) >= (least if narrow or id not in ("TS1", "TS2", "TS3", "TS5b") else least - 1), (id, result)
    for line in lines:
        for one in (line["ours"], *line["rivals"].values()):
            assert 0 < one["range"][0] <= one["median"] <= one["range"][1] < math.inf, line
        for ratio in line["ratios"]:
            assert ratio["value"] > 0, line
        figure(f"{line['id']} {line['what']}: {line['ours']['median']:.3g} {line['ours']['unit']}, the smallest size")
    assert result["cpus"] >= 1
    assert result["versions"]["openvino"]


def test_the_work_was_that_of_torch(result: dict[str, Any]) -> None:
    cosines = {
        name: cosine for line in result["lines"] for name, cosine in line["beside"].get("least_cosine", {}).items()
    }
    assert {"ours f32", "raw OpenVINO loop f32"} <= set(cosines)
    assert all(cosines[name] >= least for name, least in NEAR.items() if name in cosines)
    assert not [reason for reason in result["absent"].values() if "not ranked" in reason]
    assert made("smollm2-135m").is_dir()
    (single, *_) = [line for line in result["lines"] if line["id"] == "TS5b"]
    assert single["rivals"], result["absent"]
    assert single["notes"][0].startswith("the same"), single["notes"]


def test_a_rival_that_is_not_measured_is_absent_and_nobody_is_better_than_it(result: dict[str, Any]) -> None:
    first = next(line for line in result["lines"] if line["id"] == "TS2")
    assert "infinity-emb" in first["absent"]
    assert not {ratio["to"] for ratio in first["ratios"]} & set(first["absent"])
