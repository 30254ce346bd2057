"""A fetch has two stages, each a set of blocks that are wanted: first the DAG's nodes, then the leaves they list.

The executor (`run.py`) asks a stage for the next block, brings it from wherever, and lands it; what a stage wants, and
what a block means, only the stage knows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.source import Source

Came = Callable[[int, bool], None]
"""Told of file bytes that are newly on disk, and whether a source sent them (False: from what was here)."""


class Stage(Protocol):
    @property
    def complete(self) -> bool:
        """Nothing is wanted any more."""

    def take(self, skip: Collection[Cid]) -> Cid | None:
        """The next block that is wanted, not under way and not in skip; it is under way from now on."""

    def put_back(self, cid: Cid) -> None:
        """No longer under way; wanted as before, unless it has landed."""

    async def local(self, cid: Cid) -> bytes | None:
        """The block, verified, if the store has it in whatever form."""

    async def land(self, cid: Cid, block: bytes, source: Source | None) -> None:
        """Takes a block in. source: who sent it, unverified; None for one that `local` gave.

        Raises IntegrityError (the source sent something else), SourceUnavailable (code truncated: it sent less than the
        plan says), and for what no source can mend BadContent, UnsafeContent, QuotaExceeded, StorageError.
        """
