"""The daemon's memory does not follow the model's size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.node import NodeProcess

MIB = 1 << 20
LIMIT_BYTES = 150 * 1_000_000


def write_random(path: Path, size_bytes: int) -> None:
    with path.open("wb") as out:
        for _ in range(size_bytes // (4 * MIB)):
            out.write(os.urandom(4 * MIB))


def add_and_pin(tmp_path: Path, size_bytes: int, figure: Callable[[str], None]) -> None:
    (model := tmp_path / "model").mkdir()
    write_random(model / "weights.bin", size_bytes)
    caches = [tmp_path / "a", tmp_path / "b"]
    for cache in caches:
        cache.mkdir(mode=0o700)
    with NodeProcess(caches[0]) as a:
        root = a.json("add", str(model))["root"]
        adding = a.rss_peak_bytes()
        with NodeProcess(caches[1], "--peer", a.url) as b:
            receipt = b.json("pin", root)
            pinning, serving = b.rss_peak_bytes(), a.rss_peak_bytes()
    figure(
        f"{size_bytes >> 20} MiB: peak RSS adding {adding / 1e6:.0f} MB, pinning {pinning / 1e6:.0f} MB, serving "
        f"{serving / 1e6:.0f} MB; pinned at {size_bytes / receipt['seconds'] / 1e6:.0f} MB/s"
    )
    assert max(adding, pinning, serving) <= LIMIT_BYTES


@pytest.mark.timeout(120)
def test_a_quarter_gibibyte(tmp_path: Path, figure: Callable[[str], None]) -> None:
    add_and_pin(tmp_path, 256 * MIB, figure)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_two_gibibytes(tmp_path: Path, figure: Callable[[str], None]) -> None:
    add_and_pin(tmp_path, 2048 * MIB, figure)
