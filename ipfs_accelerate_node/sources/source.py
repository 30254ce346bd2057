"""The one protocol that fetching knows: somewhere bytes come from. What a source delivers is never trusted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ipfs_accelerate_node.content.cid import Buffer, Cid
from ipfs_accelerate_node.content.plan import FilePlan

MAX_BLOCK_BYTES = 2 << 20  # no source's answer is read beyond this for one block

# A source that answered so lacks this block, but may well have the next.
LACKS_BLOCK = frozenset({"not_found", "blocked"})


@dataclass(frozen=True, slots=True)
class Abilities:
    """How a server can be asked for a run of leaves; None: not seen yet. ranges: byte ranges of files. cars: CARs of
    a byte range."""

    ranges: bool | None = None
    cars: bool | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What a source says it has of a root at this moment: a claim, which spares us asking for what it lacks.

    complete: all of it. files: by canonical file CID a bitmap of its leaves, leaf i is bit ``i % 8`` (least significant
    first) of byte ``i // 8``; a file that is not named is not there.
    """

    complete: bool
    files: Mapping[Cid, bytes]

    def has(self, file: Cid, leaf: int) -> bool:
        bitmap = self.files.get(file.canonical, b"")
        return self.complete or (leaf // 8 < len(bitmap) and bool(bitmap[leaf // 8] >> (leaf % 8) & 1))


class Source(Protocol):
    """Implementations only carry bytes: no scheduling, no retries, no verification, no shared state."""

    @property
    def name(self) -> str:
        """What the user calls it: its URL, or "kubo". Stands in errors, receipts and provenance."""

    @property
    def kind(self) -> str:
        """kubo, gateway, peer or hub."""

    @property
    def ranges(self) -> bool:
        """Whether `read_range` is worth asking: False where only blocks are to be had, also once that was seen."""

    async def read_block(self, cid: Cid) -> bytes:
        """One block as the source has it, at most MAX_BLOCK_BYTES, NOT verified.

        Raises SourceUnavailable, always with ``source`` and ``cid``. code: not_found or blocked (this block only);
        rate_limited (``retry_after_s`` says when, if known); truncated, stalled, tls_error, address_refused,
        redirect_refused, bad_source (answers, but not with blocks), block_too_large, auth_required or
        source_unavailable.
        Cancelling it frees its connection.
        """

    def read_range(self, file: FilePlan, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """The file's own bytes from start to stop, in order, in pieces as they arrive, NOT verified; never more than
        asked for. A piece belongs to its receiver: nothing is written into it afterwards. A fast source cuts them at
        whole MiB from start, so that most of them are one leaf each. Close it (`contextlib.aclosing`) to free
        its connection.

        Raises SourceUnavailable as `read_block` does; code no_ranges: this source cannot, here or at all. Where the
        bytes travel as blocks that are hashed on their way also IntegrityError and BadContent (bad_dag).
        """

    async def held(self, root: Cid) -> Held | None:
        """What it says it has of root now; None if it cannot say (then asking is finding out). Raises
        SourceUnavailable."""

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Our copy of these leaves is verified and synced: a source that made a copy of its own for us may drop it.
        Never raises NodeError: what cannot be dropped is only logged."""

    async def aclose(self) -> None:
        """Frees what this source owns. Not to be called while a fetch uses it."""
