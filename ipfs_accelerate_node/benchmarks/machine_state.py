"""What the machine did beside a measurement: who else computed, how clocks were held, what energy it took.

Read from Linux's ``/proc`` and ``/sys`` and, for NVIDIA cards, from the driver. What cannot be read is None, not
zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.benchmarks.figures import spread
from ipfs_accelerate_node.benchmarks.nvml import Card

_TICKS = os.sysconf("SC_CLK_TCK")
_SHORTEST_S = 0.1  # of a watch whose CPU times mean anything: they are counted in hundredths of a second


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too much for figures to mean anything. spread: of the samples, as `figures.spread`. others: share of all
    cores that other processes took meanwhile. load: average per core over the minute before; more than one is others'
    work too."""

    spread: float = 0.25
    others: float = 0.25
    load: float = 1.5


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class MachineState:
    """load_before, load_during: averages over a minute. others: cores' worth of computing by other processes.
    governors: of the CPU's frequency. throttled: how often the CPU had to slow down for heat. slowed: why a card is
    slower than it could be. energy_mj: millijoules, of the card alone (by nvml) or of the whole CPU (by rapl).
    disturbed: repeats beside which this node computed for somebody else."""

    cores: int
    load_before: float
    load_during: float
    others: float | None = None
    governors: tuple[str, ...] = ()
    throttled: int | None = None
    slowed: tuple[str, ...] = ()
    energy_mj: int | None = None
    energy_by: str = ""
    disturbed: int = 0


def why_busy(state: MachineState, samples_ns: tuple[int, ...], limits: Limits) -> str:
    """Why the figures mean nothing; empty when they do. The load average holds our own work too, so it is asked only
    where the times of processes cannot be read."""
    reasons: list[str] = []
    if (found := spread(samples_ns)) > limits.spread:
        reasons.append(f"the middle half of the samples is {found:.0%} apart (at most {limits.spread:.0%})")
    if state.others is not None and state.others > limits.others * state.cores:
        reasons.append(f"other processes took {state.others:.1f} of {state.cores} cores")
    if state.others is None and state.load_before > limits.load * state.cores:
        reasons.append(f"the load average before was {state.load_before:.1f} on {state.cores} cores")
    if state.disturbed:
        reasons.append(f"other requests were computed beside {state.disturbed} of {len(samples_ns)} repeats")
    return "; ".join(reasons)


class Watch:
    """From ``since`` to `end`. pids: processes that are ours, as this one is. device: whose energy is told."""

    def __init__(self, pids: Sequence[int | None], device: str, *, system: Path = Path("/")) -> None:
        self._system = system
        self._pids = ["self", *(str(pid) for pid in pids if pid is not None)]
        self._card = Card.find(device)
        self._on_cpu = device == "cpu" or device.endswith(":CPU")
        self._load = os.getloadavg()[0]
        self._throttled = self._throttle_count()
        self._packages = self._package_energy()
        self._joules = self._card.energy_mj() if self._card else None
        self._busy, self._own = self._busy_ticks(), self._own_ticks()
        self.since = time.monotonic()

    def end(self) -> MachineState:
        elapsed_s = time.monotonic() - self.since
        busy, own = self._busy_ticks(), self._own_ticks()
        throttled = self._throttle_count()
        energy_mj, by = self._energy()
        others = None
        if busy is not None and self._busy is not None and busy > self._busy and elapsed_s >= _SHORTEST_S:
            others = max(0.0, ((busy - self._busy) - (own - self._own)) / _TICKS / elapsed_s)
        return MachineState(
            cores=os.cpu_count() or 1,
            load_before=self._load,
            load_during=os.getloadavg()[0],
            others=others,
            governors=self._governors(),
            throttled=_between(self._throttled, throttled),
            slowed=self._card.slowed() if self._card else (),
            energy_mj=energy_mj,
            energy_by=by,
        )

    def _read(self, path: str) -> str | None:
        try:
            return (self._system / path).read_text(encoding="ascii", errors="replace")
        except OSError:
            return None

    def _number(self, path: str | Path) -> int | None:
        text = (self._read(str(path)) or "").strip()
        return int(text) if text.isdigit() else None

    def _busy_ticks(self) -> int | None:
        """Of all cores together: everything but idle and waiting for disks; what a hypervisor took counts."""
        fields = (self._read("proc/stat") or "").partition("\n")[0].split()
        if len(fields) < 9 or fields[0] != "cpu" or not all(field.isdigit() for field in fields[1:9]):
            return None
        user, nice, kernel, _idle, _wait, irq, soft, steal = map(int, fields[1:9])
        return user + nice + kernel + irq + soft + steal

    def _own_ticks(self) -> int:
        """A process that has ended no longer counts: what it took is then taken for another's, which errs to care."""
        total = 0
        for pid in self._pids:
            after_name = (self._read(f"proc/{pid}/stat") or "").rpartition(")")[2].split()
            if len(after_name) > 12:
                total += int(after_name[11]) + int(after_name[12])
        return total

    def _governors(self) -> tuple[str, ...]:
        folder = self._system / "sys/devices/system/cpu"
        paths = sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_governor"))
        found = {(self._read(str(path.relative_to(self._system))) or "").strip() for path in paths}
        return tuple(sorted(name for name in found if name.isidentifier()))

    def _throttle_count(self) -> int | None:
        folder = self._system / "sys/devices/system/cpu"
        paths = folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        counts = [self._number(path.relative_to(self._system)) for path in paths]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _package_energy(self) -> dict[str, tuple[int, int]]:
        """Microjoules and where they begin again at 0, by package; empty where only root may read them."""
        if not self._on_cpu:
            return {}
        found: dict[str, tuple[int, int]] = {}
        for path in sorted((self._system / "sys/class/powercap").glob("intel-rapl:[0-9]")):
            folder = path.relative_to(self._system)
            value, most = self._number(folder / "energy_uj"), self._number(folder / "max_energy_range_uj")
            if value is not None and most is not None:
                found[path.name] = value, most
        return found

    def _energy(self) -> tuple[int | None, str]:
        if self._card is not None and self._joules is not None and (now_mj := self._card.energy_mj()) is not None:
            return now_mj - self._joules, "nvml"
        now = self._package_energy()
        if not self._packages or now.keys() != self._packages.keys():
            return None, ""
        spent = 0
        for name, (before, most) in self._packages.items():
            after = now[name][0]
            spent += after - before if after >= before else after + most - before
        return spent // 1000, "rapl"


def _between(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
