"""Converted models, made when they are first asked for and kept under ``<cache>/artefacts``.

One conversion per artefact at a time, whoever asks for it: callers share a ``_Flight``. It owns the converting process
and the folder that it writes into; both go when the last caller does. Of the callers one at a time waits for the
process, the others wait for that one; when it is cancelled, the next goes on where it was. A folder gets the artefact's
name only when it is whole and durable; what a killed daemon leaves is a ``.partial-…`` folder, which the next
conversion clears away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ipfs_accelerate_node.errors import BadContent, NodeError
from ipfs_accelerate_node.inference.openvino.artefact import (
    DESCRIPTION,
    Artefact,
    artefact_key,
    check_artefact,
    form_of,
    read_artefact,
    sync_directory,
    versions_of,
    weights_of,
)
from ipfs_accelerate_node.inference.openvino.conversion import Conversion, Order
from ipfs_accelerate_node.store.disk import storing

log = logging.getLogger(__name__)

_PARTIAL = ".partial-"
_numbers = itertools.count(1)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StoredArtefact:
    path: Path
    artefact: Artefact
    size_bytes: int


async def ensure(
    directory: Path, root: str, task: str, precision: str, cache: Path, progress: Report = lambda _: None
) -> Path:
    """The folder of a model's artefact, every byte of it checked; converted first when it is not there or damaged.

    directory: the model's files. root: what they are; a model of this root is always the same. progress: called with
    what the conversion is at, in words. A conversion takes from seconds to minutes: bound it with a timeout.
    Raises ModelUnsupported: the model is refused, cannot be converted, or is too far from itself in int8; StorageError;
    InferenceFailed: the converting process ended. Cancelling one caller leaves the others.
    """
    form, weights = form_of(task), weights_of(precision)
    order = Order(directory, root, task, form, weights, versions_of(weights))
    target = cache / "artefacts" / artefact_key(root, form, weights, order.versions)
    flight = _flights.get(target)
    if flight is None:
        flight = _flights[target] = _Flight(target, order)
    with flight.joined(progress):
        try:
            return await flight.land()
        finally:
            if flight.last:
                if _flights.get(target) is flight:
                    del _flights[target]
                await flight.end()


def stored(cache: Path, *, root: str | None = None) -> list[StoredArtefact]:
    """Every whole artefact, or those of one model. Blocking."""
    found: list[StoredArtefact] = []
    for folder in _folders(cache):
        try:
            artefact = read_artefact(folder)
        except BadContent:
            continue
        if root is None or artefact.root == root:
            found.append(StoredArtefact(folder, artefact, _size_bytes(folder)))
    return found


def size_bytes(cache: Path) -> int:
    """Of everything below ``<cache>/artefacts``, half artefacts included. Blocking."""
    folder = cache / "artefacts"
    return sum(_size_bytes(entry) for entry in folder.iterdir()) if folder.is_dir() else 0


def remove(cache: Path, root: str) -> int:
    """Remove a model's artefacts; returns the bytes freed. A worker that has one open keeps it until it ends. Blocking.

    Raises StorageError.
    """
    freed = 0
    for one in stored(cache, root=root):
        _discard(one.path)
        freed += one.size_bytes
        log.info("artefact.removed root=%s form=%s bytes=%d", root, one.artefact.form, one.size_bytes)
    return freed


@dataclass(eq=False)
class _Flight:
    """outcome: the folder, or why there is none."""

    target: Path
    order: Order
    _reports: list[Report] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _conversion: Conversion | None = None
    _outcome: Path | NodeError | None = None

    @contextlib.contextmanager
    def joined(self, report: Report) -> Iterator[None]:
        self._reports.append(report)
        try:
            yield
        finally:
            if report in self._reports:
                self._reports.remove(report)

    @property
    def last(self) -> bool:
        return len(self._reports) == 1

    async def land(self) -> Path:
        async with self._turn:
            if self._outcome is None:
                try:
                    self._outcome = await self._go_on()
                except NodeError as exc:
                    self._outcome = exc
        if isinstance(self._outcome, NodeError):
            raise self._outcome
        return self._outcome

    async def end(self) -> None:
        """The last caller is gone."""
        if self._conversion is not None:
            conversion, self._conversion = self._conversion, None
            await conversion.end()
            await asyncio.to_thread(shutil.rmtree, conversion.folder, ignore_errors=True)

    async def _go_on(self) -> Path:
        if self._conversion is None:
            if await asyncio.to_thread(_whole, self.target):
                return self.target
            folder = await asyncio.to_thread(_partial, self.target.parent)
            self._conversion = Conversion(folder, self.order)
        await self._conversion.run(self._report)
        await asyncio.to_thread(_settle, self._conversion.folder, self.target)
        return self.target

    def _report(self, phase: str) -> None:
        for report in self._reports:
            report(phase)


_flights: dict[Path, _Flight] = {}  # under way in this process, by the artefact's folder
_checked: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}  # artefacts whose bytes this process has hashed


def _whole(target: Path) -> bool:
    """It is there and every byte is right; a damaged one is removed. Hashed once per process and state of its files."""
    if not target.is_dir():
        return False
    try:
        state = _state(target)
        if _checked.get(target) != state:
            check_artefact(target)
            _checked[target] = state
        return True
    except (BadContent, OSError) as exc:
        log.warning("artefact.damaged %s", exc)
        _discard(target)
        return False


def _state(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    entries = ((entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder))
    return tuple(sorted((name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in entries))


def _partial(parent: Path) -> Path:
    """A new folder for a conversion to write into; what dead processes left is cleared away first."""
    with storing(f"artefacts in {parent}"):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in parent.iterdir():
            if entry.name.startswith(_PARTIAL) and not _alive(entry.name.split("-")[1]):
                shutil.rmtree(entry, ignore_errors=True)
        folder = parent / f"{_PARTIAL}{os.getpid()}-{next(_numbers)}"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that had our number before
        folder.mkdir(mode=0o700)
    return folder


def _alive(pid: str) -> bool:
    return pid.isdecimal() and Path("/proc", pid).exists()


def _settle(folder: Path, target: Path) -> None:
    """Give a finished artefact its name, durably, and drop those that it replaces."""
    artefact = read_artefact(folder)
    with storing(f"artefact {target}"):
        if target.exists():  # damaged, or of another process that was as fast
            _discard(target)
        os.rename(folder, target)
        sync_directory(target.parent)
    _checked[target] = _state(target)  # the converting process hashed what it wrote
    for other in stored(target.parent.parent, root=artefact.root):
        same = (other.artefact.form, other.artefact.weights) == (artefact.form, artefact.weights)
        if same and other.path != target:  # of other versions: nothing would ask for it again
            _discard(other.path)


def _discard(folder: Path) -> None:
    """Remove an artefact so that no crash leaves half of it under its name."""
    _checked.pop(folder, None)
    with storing(f"artefact {folder}"):
        aside = folder.with_name(f"{_PARTIAL}{os.getpid()}-{next(_numbers)}-gone")
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _folders(cache: Path) -> list[Path]:
    folder = cache / "artefacts"
    if not folder.is_dir():
        return []
    return sorted(e for e in folder.iterdir() if not e.name.startswith(".") and (e / DESCRIPTION).is_file())


def _size_bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # it goes while it is counted
        total = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    return total
