"""What devices were measured to take for a model, kept across starts, and the choice that follows from it.

A figure belongs to a root, a task, a device (by its own name too), a precision and the runtime's versions; whatever of
these changes asks for a new one. The file is a cache: one that cannot be read is started anew.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.inference.model import Accelerator, Candidate

log = logging.getLogger(__name__)

MAX_FIGURES = 2000
MEASURE_S = 2.0  # of passes on one device; a single slow pass may go beyond


class Figure(msgspec.Struct, frozen=True):
    """median_ms: of one sample input at a time, ``samples`` times. at: ISO, UTC."""

    key: tuple[str, ...]
    median_ms: float
    samples: int
    at: str


class _File(msgspec.Struct, frozen=True):
    version: int
    figures: list[Figure]


def key_of(root: str, task: str, accelerator: Accelerator, precision: str) -> tuple[str, ...]:
    versions = ",".join(f"{name}={version}" for name, version in sorted(accelerator.versions.items()))
    return (root, task, accelerator.device, accelerator.name, precision, versions, __version__)


class Calibrations:
    """path: None keeps them for this process only. Blocking; small."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._figures = {figure.key: figure for figure in self._read()}

    def find(self, key: tuple[str, ...]) -> Figure | None:
        return self._figures.get(key)

    def note(self, key: tuple[str, ...], samples_ns: Sequence[int]) -> Figure:
        """Keep what was measured; the newest figure of a key counts."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        figure = Figure(key, round(statistics.median(samples_ns) / 1e6, 4), len(samples_ns), at)
        self._figures.pop(key, None)
        self._figures[key] = figure
        while len(self._figures) > MAX_FIGURES:
            del self._figures[next(iter(self._figures))]
        self._write()
        return figure

    def _read(self) -> list[Figure]:
        if self._path is None:
            return []
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("calibration.unreadable reason=%s", exc)
            return []
        return found.figures if found.version == 1 else []

    def _write(self) -> None:
        """Whole or not at all; that it cannot be written costs a measurement at the next start, nothing now."""
        if self._path is None:
            return
        try:
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".calibration-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(_File(1, list(self._figures.values()))))
            os.replace(name, self._path)
        except OSError as exc:
            log.warning("calibration.not_kept reason=%s", exc)


@dataclass(frozen=True, slots=True)
class Fitting:
    """A device that could take the model, or why it cannot. needs_conversion: to a form that is not there yet."""

    accelerator: Accelerator
    refusal: str = ""
    needs_conversion: bool = False


def fitting(
    found: Sequence[Accelerator], *, precision: str, need_bytes: int, convertible: str, free_bytes: int
) -> list[Fitting]:
    """Every device with the reason against it, in the order that holds where nothing was measured: GPUs, then what
    needs no conversion.

    need_bytes: of the weights. convertible: why models cannot be converted here, empty when they can. free_bytes: of
    this machine's memory.
    """
    judged: list[Fitting] = []
    for accelerator in sorted(found, key=_rank):
        converted = accelerator.runtime == "openvino"
        own = accelerator.device.startswith("cuda") or accelerator.device.startswith("openvino:GPU")
        free = accelerator.free_bytes if own and accelerator.free_bytes is not None else free_bytes
        if not accelerator.available:
            refusal = accelerator.reason
        elif converted and convertible:
            refusal = convertible
        elif precision not in accelerator.precisions:
            refusal = f"computes in {', '.join(accelerator.precisions)}, not in {precision}"
        elif need_bytes > free:
            refusal = f"the weights take {need_bytes:,} bytes, {free:,} are free"
        else:
            refusal = ""
        judged.append(Fitting(accelerator, refusal, converted))
    return judged


def _rank(accelerator: Accelerator) -> int:
    device = accelerator.device
    return 0 if device.startswith("cuda") else 1 if device == "cpu" else 2


def chosen(candidates: Sequence[Candidate], device: str) -> tuple[Candidate, ...]:
    """The candidates, the fastest first, with the one on ``device`` marked and the others compared to it."""
    best = next((c.median_ms for c in candidates if c.device == device), None)
    marked: list[Candidate] = []
    for candidate in candidates:
        reason = candidate.reason
        if candidate.device != device and best and candidate.median_ms is not None:
            reason = f"{reason}; takes {candidate.median_ms / best:.2f} × as long as {device}"
        marked.append(replace(candidate, reason=reason, chosen=candidate.device == device))
    return tuple(sorted(marked, key=lambda c: (not c.chosen, c.median_ms is None, c.median_ms or 0.0)))
