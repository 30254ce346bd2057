"""Where Triton may leave what it compiles, and where it finds the driver: a worker has no home and no library path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def compiling() -> Iterator[None]:
    """Where Triton keeps what it compiles: a folder of this process alone, for what lies there is run. Compiled kernels
    stay in memory, so it goes at the end."""
    folder = tempfile.mkdtemp(prefix="ian-kernels-")
    os.environ["TRITON_CACHE_DIR"] = folder
    os.environ.setdefault("HOME", folder)
    if (driver := _driver()) is not None:
        os.environ.setdefault("TRITON_LIBCUDA_PATH", str(driver.parent))
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _driver() -> Path | None:
    """The CUDA driver's library, as this process has it mapped: Triton would look elsewhere."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.rpartition(" ")[2])
        if path.name.startswith("libcuda.so"):
            return path
    return None
