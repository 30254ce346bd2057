"""Our own records on disk: ``<cache>/records/<cid>``, record and envelope each a file named by its CID.

Written record first, each whole or not at all, so a crash leaves at most a record that no envelope signs. Nothing is
believed when it is read back: an entry that does not verify is reported, not shown.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.benchmarks.schema import SCHEMA_VERSION
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import InvalidCid, NodeError, NotFound, StorageError
from ipfs_accelerate_node.records.canonical import MAX_BYTES
from ipfs_accelerate_node.records.envelope import (
    BENCH_PREFIX,
    Opened,
    Sealed,
    envelope_record,
    is_envelope,
    open_envelope,
)
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

_COUNTER = "seq"
_PUBLISHED = ".published"  # an empty file beside the envelope's


@dataclass(frozen=True, slots=True)
class Listing:
    """records: verified, oldest first; those of other versions of the schema are left out. broken: file name and reason
    of each entry that is not what its name says."""

    records: tuple[Opened, ...]
    broken: tuple[tuple[str, str], ...]


class RecordShelf:
    """Blocks: worker threads only. Safe for several threads and processes at once."""

    def __init__(self, cache: Path) -> None:
        self._directory = cache / "records"

    def next_seq(self) -> int:
        """A number larger than any given before, durable before it is given. Raises StorageError."""
        with self._opened() as directory:
            fcntl.flock(directory, fcntl.LOCK_EX)
            try:
                text = disk.read_file(_COUNTER, dir_fd=directory, limit_bytes=32).decode("ascii", "replace")
            except FileNotFoundError:
                text = ""
            last = int(text) if text.isdigit() else self._highest()
            disk.write_file(_COUNTER, b"%d" % (last + 1), dir_fd=directory)
            return last + 1

    def keep(self, sealed: Sealed) -> None:
        """Both blocks, durable when it returns. Raises StorageError."""
        with self._opened() as directory:
            for cid, block in (
                (sealed.record_cid, sealed.record_bytes),
                (sealed.envelope_cid, sealed.envelope_bytes),
            ):
                disk.write_file(str(cid), block, dir_fd=directory)

    def note_published(self, envelope: Cid) -> None:
        """Its owner agreed to show it to everybody, and it was. Durable when it returns. Raises StorageError."""
        with self._opened() as directory:
            disk.write_file(f"{envelope}{_PUBLISHED}", b"", dir_fd=directory)

    def listing(self, model: Cid | None = None, *, published: bool = False) -> Listing:
        """What is here, of one model or of all. published: only what was published. Raises StorageError."""
        found = self._listing(published=published)
        records = [opened for opened in found.records if _is_current(opened)]
        return Listing(tuple(o for o in records if model in (None, o.record.get("model"))), found.broken)

    def _listing(self, *, published: bool) -> Listing:
        records: list[Opened] = []
        broken: list[tuple[str, str]] = []
        with self._opened() as directory:
            names = set(os.listdir(directory))
            for name in sorted(names):
                if published and f"{name}{_PUBLISHED}" not in names:
                    continue
                try:
                    opened = self._entry(name, directory)
                except (NodeError, OSError) as exc:
                    log.warning("record.broken name=%s reason=%s", ascii(name), exc)
                    broken.append((name, str(exc)))
                    continue
                if opened is not None:
                    records.append(opened)
        return Listing(tuple(sorted(records, key=_seq)), tuple(broken))

    def sealed(self, envelope: Cid) -> Sealed:
        """The two blocks of one record, verified, ready to be published. Raises NotFound, BadContent, StorageError."""
        with self._opened() as directory:
            try:
                envelope_bytes = _block(envelope, directory)
                record_bytes = _block(envelope_record(envelope_bytes), directory)
            except FileNotFoundError as exc:
                raise NotFound(f"no record {envelope} is here") from exc
        opened = open_envelope(envelope_bytes, record_bytes, BENCH_PREFIX)
        return Sealed(opened.record_cid, record_bytes, opened.envelope_cid, envelope_bytes)

    def _entry(self, name: str, directory: int) -> Opened | None:
        """The record whose envelope is the file of that name; None for a file that is no envelope."""
        try:
            cid = Cid.parse(name)
        except InvalidCid:
            return None
        block = _block(cid, directory)
        if not is_envelope(block):
            return None
        return open_envelope(block, _block(envelope_record(block), directory), BENCH_PREFIX)

    def _highest(self) -> int:
        """Of the records that are here; for a counter that was lost."""
        return max(map(_seq, self._listing(published=False).records), default=0)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with disk.storing(f"records in {self._directory}"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            directory = disk.open_directory(self._directory)
            try:
                yield directory
            finally:
                os.close(directory)


def _block(cid: Cid, directory: int) -> bytes:
    block = disk.read_file(str(cid), dir_fd=directory, limit_bytes=MAX_BYTES)
    if cid.codec != DAG_CBOR:
        raise StorageError(f"{cid} is not the name of a record")
    cid.check(block, "records")
    return block


def _seq(opened: Opened) -> int:
    seq = opened.record["seq"]
    return seq if isinstance(seq, int) else 0


def _is_current(opened: Opened) -> bool:
    return opened.record.get("v", SCHEMA_VERSION) == SCHEMA_VERSION
