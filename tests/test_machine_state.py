"""How busy a machine was: read from a folder that looks like its /proc and /sys."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_accelerate_node.benchmarks.machine_state import LIMITS, MachineState, Watch, why_busy

ALIKE = (1000, 1001, 999, 1000, 1002)


class Machine:
    """Times in hundredths of a second."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.busy = self.own = self.worker = self.ended = 0
        self.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
        self.write("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n")
        self.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "5\n")
        self.energy(999_000)
        self.tick()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def energy(self, microjoules: int) -> None:
        self.write("sys/class/powercap/intel-rapl:0/energy_uj", f"{microjoules}\n")
        self.write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000\n")

    def tick(self, *, own: int = 0, worker: int = 0, others: int = 0) -> None:
        self.own, self.worker, self.busy = self.own + own, self.worker + worker, self.busy + own + worker + others
        self.write("proc/stat", f"cpu  {self.busy} 0 0 5000 10 0 0 0 0 0\ncpu0 1 2 3\n")
        state = "S 1 1 1 0 -1 0 0 0 0 0"
        self.write("proc/self/stat", f"77 (a name) with) {state} {self.own} 0 0 0 20 0 9\n")
        self.write("proc/42/stat", f"42 (worker) {state} 0 {self.worker} 0 0 20 0 9\n")

    def watch(self, device: str = "cpu") -> Watch:
        return Watch([42, None, 4711], device, system=self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def ended(watch: Watch) -> MachineState:
    """After long enough for times in hundredths of a second to mean something."""
    watch.since -= 2.0
    return watch.end()


def test_others_are_what_is_not_ours(machine: Machine) -> None:
    watch = machine.watch()
    machine.tick(own=20, worker=130, others=100)
    state = ended(watch)
    assert state.others == pytest.approx(0.5, rel=0.05)
    quiet = machine.watch()
    machine.tick(worker=200)
    assert ended(quiet).others == 0


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    state = ended(Watch([1], "cpu", system=tmp_path))
    assert (state.others, state.throttled, state.energy_mj, state.governors, state.slowed) == (None, None, None, (), ())
    (tmp_path / "proc").mkdir()
    for nonsense in ("", "cpu", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8 9"):
        (tmp_path / "proc/stat").write_text(nonsense)
        assert ended(Watch([], "cpu", system=tmp_path)).others is None


def test_a_watch_too_short_says_nothing_of_others(machine: Machine) -> None:
    watch = machine.watch()
    machine.tick(others=100)
    watch.since = time.monotonic()
    assert watch.end().others is None


def test_clocks_and_energy(machine: Machine) -> None:
    watch = machine.watch()
    machine.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "8\n")
    machine.energy(4_000)  # it began again at 0 in between
    state = ended(watch)
    assert state.governors == ("performance", "powersave")
    assert state.throttled == 3
    assert (state.energy_mj, state.energy_by) == (5, "rapl")
    assert ended(machine.watch("openvino:GPU")).energy_mj is None  # of the CPU: another's


def test_this_machine_can_be_read() -> None:
    state = Watch([], "cpu").end()
    assert state.cores >= 1
    assert state.load_before >= 0


@pytest.mark.parametrize(
    ("change", "samples", "reason"),
    [
        ({}, ALIKE, ""),
        ({"others": 1.1}, ALIKE, "other processes took 1.1 of 4 cores"),
        ({"others": 0.9, "load_before": 40.0}, ALIKE, ""),  # our own work, then
        ({"others": None, "load_before": 6.5}, ALIKE, "load average before was 6.5 on 4 cores"),
        ({}, (1000, 2000, 1000, 2000), "the middle half of the samples is 67% apart"),
        ({}, (1000,), ""),
        ({"disturbed": 2}, ALIKE, "other requests were computed beside 2 of 5 repeats"),
    ],
)
def test_when_figures_mean_nothing(change: dict[str, float | None], samples: tuple[int, ...], reason: str) -> None:
    calm = MachineState(cores=4, load_before=0.5, load_during=1.0, others=0.2)
    found = why_busy(replace(calm, **change), samples, LIMITS)  # type: ignore[arg-type]
    assert (reason in found) if reason else found == ""
