"""How much memory this machine, this process and another process have. Linux; read from /proc and the cgroup."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def _field(path: str, name: str) -> int | None:
    """A ``name:  N kB`` line of a /proc file, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def available_bytes() -> int:
    """Memory that can be had without swapping: of the machine, or less where a cgroup allows less."""
    available = _field("/proc/meminfo", "MemAvailable") or 0
    for limit, used in _CGROUP:
        try:
            allowed = limit.read_text().strip()
            if allowed != "max":
                available = min(available, max(0, int(allowed) - int(used.read_text())))
        except (OSError, ValueError):
            continue
    return available


def total_bytes() -> int:
    return _field("/proc/meminfo", "MemTotal") or 0


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    return _field("/proc/self/status", "VmData") or 0


def allowed_bytes() -> int:
    """What this process may still take: of what can be had, and of what RLIMIT_DATA leaves it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    own = limit - data_bytes() if limit != resource.RLIM_INFINITY else available_bytes()
    return max(0, min(available_bytes(), own))


def resident_bytes(pid: int) -> int:
    """Resident size of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int:
    """Resident size of a process, pages that it shares counted by their share (PSS); 0 when it has ended."""
    try:
        return _field(f"/proc/{pid}/smaps_rollup", "Pss") or 0
    except OSError:
        return 0
