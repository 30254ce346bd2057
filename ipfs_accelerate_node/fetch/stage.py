"""A fetch has two stages, each a set of jobs for sources: first the DAG's nodes, then the leaves they list.

The executor (`executor.py`) hands out jobs and judges how they ended; what a job is and how it is done only the stage
knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from ipfs_accelerate_node.fetch.schedule import Standing

Came = Callable[[int, bool], None]
"""Told of file bytes that are newly on disk, and whether a source sent them (False: from what was here)."""

Job = TypeVar("Job")


class Stage(Protocol[Job]):
    @property
    def complete(self) -> bool:
        """Nothing is wanted any more."""

    def lanes(self, standing: Standing, sources: int) -> int:
        """How many jobs this source may have at a time, when so many share the work."""

    def next(self, standing: Standing, now: float) -> Job | None:
        """A job for this source, under way from now on; None if there is none at the moment."""

    async def carry(self, standing: Standing, job: Job) -> None:
        """Does it. What was landed counts, however it ends; the rest is wanted again once it is released.

        Raises IntegrityError (the source sent something else), SourceUnavailable, and for what no source can mend
        BadContent, UnsafeContent, QuotaExceeded, StorageError.
        """

    def release(self, job: Job) -> None:
        """It ended, or was cancelled before it began."""

    async def watch(self, standing: Standing) -> None:
        """Runs beside the jobs of one source, from its joining to the end of the stage: learns what it has."""

    def awaits(self, standing: Standing, now: float) -> bool:
        """Whether this source may have something soon that it has not got now."""

    def dismiss(self, standing: Standing) -> None:
        """This source is out, for good or until it may be asked again: others need not leave anything to it."""

    def silent(self, now: float) -> Mapping[Standing, float]:
        """Whose jobs bring nothing, and for how many seconds already."""
