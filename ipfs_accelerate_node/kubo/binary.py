"""The `ipfs` program: where it is and whether it is one that this node can drive."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

from ipfs_accelerate_node.errors import Unavailable

MINIMUM = (0, 38)  # the first with a provide strategy that can be switched and filestore as used here
TRIED = "0.43.1"
_BUILT = Path(__file__).resolve().parents[2] / ".kubo" / "ipfs"
HINT = "run scripts/install-kubo, or put `ipfs` on PATH"


def find_binary(configured: Path | None, *, search_path: str | None = None) -> Path | None:
    """The configured one, else `ipfs` on PATH (or search_path), else what scripts/install-kubo built in this
    checkout."""
    if configured is not None:
        return configured
    if found := shutil.which("ipfs", path=search_path):
        return Path(found)
    return _BUILT if _BUILT.is_file() else None


async def checked_version(binary: Path, *, timeout_s: float = 10.0) -> str:
    """Its version, such as "0.43.1". Raises Unavailable (kubo_unavailable) when it does not run or is too old."""
    try:
        process = await asyncio.create_subprocess_exec(
            binary,
            "version",
            "--number",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"IPFS_TELEMETRY": "off", "IPFS_PATH": "/nonexistent"},
        )
    except OSError as exc:
        raise _unusable(f"cannot run the Kubo binary {binary}: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        raise _unusable(f"the Kubo binary {binary} does not tell its version") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").strip()
    match = re.match(r"(\d+)\.(\d+)\.", text)
    if match is None:
        raise _unusable(f"{binary} is not Kubo: it calls itself {text[:40]!r}")
    if (int(match[1]), int(match[2])) < MINIMUM:
        raise _unusable(f"Kubo {text} is too old (needs {MINIMUM[0]}.{MINIMUM[1]} or newer): {HINT}")
    return text


def _unusable(message: str) -> Unavailable:
    return Unavailable(message, code="kubo_unavailable")
