"""Pins under way, as a caller sees them: what each has got so far, and how it ended.

A job outlives the request that started it and every watcher. Its state changes in one place (`JobBoard.change`),
without an `await` inside; watchers wait for the next change and never miss the last one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal

from ipfs_accelerate_node.content.reference import RootRef, parse_reference
from ipfs_accelerate_node.errors import BadRequest, Problem
from ipfs_accelerate_node.fetch.hub_chain import ChainStep
from ipfs_accelerate_node.fetch.outcome import SourceNow
from ipfs_accelerate_node.store.types import Selection, SourceFailure, SourceShare

JobState = Literal["fetching", "seeding", "pinned", "failed"]
KEPT_ENDED_JOBS = 100


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an `add` or a `pin` did. path: the loadable directory.

    bytes_total: of the files that were asked for; bytes_copied: leaves that other stored files hold, or that came from
    the local disk; bytes_here: what was here already, as files or as the verified part of an earlier try. failures:
    what sources did wrong. seed_note: why the model is not seeded, or anything the user should know about how.
    absent_files: files of the model that are not here, because nobody asked for them. chain: how a reference to the
    Hub was followed, each step with its outcome. selection: the root is not the commit's, but of some of its files,
    and this was left out. replaced: selections whose files, names and pin this root has now. map_envelope: of the map
    that was published; map_note: why none was, or who has not been told yet.
    """

    root: str
    name: str | None
    path: str
    bytes_total: int
    bytes_fetched: int
    bytes_copied: int
    seconds: float
    sources: tuple[SourceShare, ...]
    seeded: bool
    seed_note: str | None
    announced: bool
    reference: str
    failures: tuple[SourceFailure, ...] = ()
    absent_files: int = 0
    chain: tuple[ChainStep, ...] = ()
    bytes_here: int = 0
    selection: Selection | None = None
    replaced: tuple[str, ...] = ()
    map_envelope: str | None = None
    map_note: str | None = None


@dataclass(frozen=True, slots=True)
class PinJob:
    """One state of one pin. bytes_total is None until the DAG has been walked; error: the problem body of a failure.

    only: patterns of the files that are wanted, () is all; exclude: of those that are not. sources: each one at this
    moment; left_s: at that rate.
    """

    id: str
    ref: str
    name: str | None
    state: JobState
    root: str | None = None
    bytes_total: int | None = None
    bytes_done: int = 0
    source: str | None = None
    receipt: Receipt | None = None
    error: Problem | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sources: tuple[SourceNow, ...] = ()
    left_s: float | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("pinned", "failed")


@dataclass(frozen=True, slots=True)
class StoppedPin:
    """What `unpin` stopped before its model was stored. root is None if it was not known yet."""

    root: str | None
    reference: str
    pinned: Literal[False] = False


class JobBoard:
    """Owns the current state of every job of this run of the daemon; the last ended ones are kept for who asks late."""

    def __init__(self) -> None:
        self._jobs: dict[str, PinJob] = {}
        self._changed: dict[str, asyncio.Event] = {}

    def open(
        self,
        ref: str,
        name: str | None,
        root: str | None = None,
        *,
        only: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> PinJob:
        new = secrets.token_hex(8)
        job = PinJob(id=new, ref=ref, name=name, state="fetching", root=root, only=only, exclude=exclude)
        self._jobs[job.id] = job
        self._changed[job.id] = asyncio.Event()
        return job

    def change(self, job_id: str, **fields: object) -> PinJob:
        job = replace(self._jobs[job_id], **fields)  # type: ignore[arg-type]  # field names are PinJob's
        self._jobs[job_id] = job
        changed, self._changed[job_id] = self._changed[job_id], asyncio.Event()
        changed.set()
        if job.ended:
            self._forget_oldest()
        return job

    def find(self, id_or_root: str) -> PinJob | None:
        """By id, else the newest job of that root."""
        if id_or_root in self._jobs:
            return self._jobs[id_or_root]
        return next((j for j in reversed(self._jobs.values()) if j.root == id_or_root), None)

    def under_way(self, ref: str) -> list[PinJob]:
        """Those that have not ended, by id, root, name or the reference that was pinned, a CID in any spelling."""
        wanted = {ref, _canonical(ref)}
        return [j for j in self._jobs.values() if not j.ended and wanted & {j.id, j.root, j.name, _canonical(j.ref)}]

    def all(self) -> list[PinJob]:
        return list(self._jobs.values())

    async def updates(self, job_id: str) -> AsyncIterator[PinJob]:
        """The state now, then each later one (several changes may come as one), ending with the ended one."""
        while (job := self._jobs.get(job_id)) is not None:
            changed = self._changed[job_id]
            yield job
            if job.ended:
                return
            await changed.wait()

    def _forget_oldest(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.ended]
        for job_id in ended[:-KEPT_ENDED_JOBS]:
            del self._jobs[job_id], self._changed[job_id]


def _canonical(ref: str) -> str:
    """The same text for all spellings of one root."""
    try:
        reference = parse_reference(ref)
    except BadRequest:
        return ref
    return str(reference.cid.canonical) if isinstance(reference, RootRef) and not reference.path else ref
