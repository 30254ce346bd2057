"""What devices were measured to take for a model, and whether it is the same there in fewer bits; kept across starts.

A figure, or a verdict, belongs to a root, a task, a device (by its own name too), a precision and the runtime's
versions; whatever of these changes asks for a new one. The file is a cache: one that cannot be read is started anew.
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
from typing import TypeVar

import msgspec

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.inference.model import Accelerator, Candidate

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")
_VERSION = 1
MAX_FIGURES = 2000  # and as many verdicts
Key = tuple[str, ...]
MEASURE_S = 2.0  # of passes on one device; a single slow pass may go beyond


class Figure(msgspec.Struct, frozen=True):
    """median_ms: of one sample input at a time, ``samples`` times. at: ISO, UTC."""

    key: Key
    median_ms: float
    samples: int
    at: str


class Verdict(msgspec.Struct, frozen=True):
    """does: this precision may be served where none is asked for. reason: with the figures. at: ISO, UTC."""

    key: Key
    does: bool
    reason: str
    at: str


class _File(msgspec.Struct, frozen=True):
    version: int
    figures: list[Figure]
    verdicts: list[Verdict] = []


def key_of(root: str, task: str, accelerator: Accelerator, precision: str) -> Key:
    versions = ",".join(f"{name}={version}" for name, version in sorted(accelerator.versions.items()))
    return (root, task, accelerator.device, accelerator.name, precision, versions, __version__)


class Calibrations:
    """path: None keeps them for this process only. Blocking; small."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        found = self._read()
        self._figures = {figure.key: figure for figure in found.figures}
        self._verdicts = {verdict.key: verdict for verdict in found.verdicts}

    def find(self, key: Key) -> Figure | None:
        return self._figures.get(key)

    def verdict(self, key: Key) -> Verdict | None:
        return self._verdicts.get(key)

    def judged(self, root: str) -> bool:
        """Is there a verdict on this model, whatever device and version it is of?"""
        return any(key[0] == root for key in list(self._verdicts))

    def note(self, key: Key, samples_ns: Sequence[int]) -> Figure:
        """Keep what was measured; the newest figure of a key counts."""
        figure = Figure(key, round(statistics.median(samples_ns) / 1e6, 4), len(samples_ns), _now())
        _add(self._figures, key, figure)
        self._write()
        return figure

    def judge(self, key: Key, *, does: bool, reason: str) -> Verdict:
        """Keep what was found; the newest verdict of a key counts."""
        verdict = Verdict(key, does, reason, _now())
        _add(self._verdicts, key, verdict)
        self._write()
        return verdict

    def _read(self) -> _File:
        empty = _File(_VERSION, [])
        if self._path is None:
            return empty
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return empty
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("calibration.unreadable reason=%s", exc)
            return empty
        return found if found.version == _VERSION else empty

    def _write(self) -> None:
        """Whole or not at all; that it cannot be written costs a measurement at the next start, nothing now."""
        if self._path is None:
            return
        try:
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".calibration-")
            with os.fdopen(descriptor, "wb") as file:
                kept = _File(_VERSION, list(self._figures.values()), list(self._verdicts.values()))
                file.write(msgspec.json.encode(kept))
            os.replace(name, self._path)
        except OSError as exc:
            log.warning("calibration.not_kept reason=%s", exc)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _add(kept: dict[Key, Kept], key: Key, found: Kept) -> None:
    """The newest last; of too many the oldest go."""
    kept.pop(key, None)
    kept[key] = found
    while len(kept) > MAX_FIGURES:
        del kept[next(iter(kept))]


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


def chosen(candidates: Sequence[Candidate], device: str, precision: str) -> tuple[Candidate, ...]:
    """The candidates, the fastest first, with the one that was taken marked and those of other devices compared to it.
    Precisions of one device were compared with more care, and their reasons say so."""

    def taken(one: Candidate) -> bool:
        return (one.device, one.precision) == (device, precision)

    best = next((c.median_ms for c in candidates if taken(c)), None)
    marked: list[Candidate] = []
    for candidate in candidates:
        reason = candidate.reason
        if candidate.device != device and best and candidate.median_ms is not None:
            where = device if candidate.precision == precision else f"{device} in {precision}"
            reason = f"{reason}; takes {candidate.median_ms / best:.2f} × as long as {where}"
        marked.append(replace(candidate, reason=reason, chosen=taken(candidate)))
    return tuple(sorted(marked, key=lambda c: (not c.chosen, c.median_ms is None, c.median_ms or 0.0)))
