"""The last report that was made here, kept for who looks later: ``<cache>/report.json``, as `report --json` has it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipfs_accelerate_node.benchmarks.cells import MAX_REPORT_BYTES, Report, read_report
from ipfs_accelerate_node.errors import InvalidInput, NodeError
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

FILE = "report.json"


@dataclass(frozen=True, slots=True)
class KeptReport:
    """at: when it was made, seconds since 1970."""

    report: Report
    at: float


def keep_report(cache: Path, report: Report) -> None:
    """In place of an earlier one. One that cannot be kept is no less made: the log says why. Blocks."""
    data = msgspec.json.encode(report)
    try:
        with disk.storing(f"the report in {cache}"):
            directory = disk.open_directory(cache)
            try:
                if len(data) <= MAX_REPORT_BYTES:
                    disk.write_file(FILE, data, dir_fd=directory)
            finally:
                os.close(directory)
    except NodeError as exc:
        log.warning("report.not_kept reason=%s", exc)


def last_report(cache: Path) -> KeptReport | None:
    """None where none was made, or what is there is none. Blocks. Raises StorageError."""
    with disk.storing(f"the report in {cache}"):
        directory = disk.open_directory(cache)
        try:
            data = disk.read_file(FILE, dir_fd=directory, limit_bytes=MAX_REPORT_BYTES)
            at = os.stat(FILE, dir_fd=directory).st_mtime
        except FileNotFoundError:
            return None
        finally:
            os.close(directory)
    try:
        return KeptReport(read_report(data, name=FILE), at)
    except InvalidInput as exc:
        log.warning("report.unreadable reason=%s", exc)
        return None
