"""The one protocol that fetching knows: somewhere bytes come from. What a source delivers is never trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ipfs_accelerate_node.content.cid import Cid

MAX_BLOCK_BYTES = 2 << 20  # no source's answer is read beyond this for one block

# A source that answered so lacks this block, but may well have the next.
LACKS_BLOCK = frozenset({"not_found", "blocked"})


class Source(Protocol):
    """Implementations only carry bytes: no scheduling, no retries, no verification, no shared state."""

    @property
    def name(self) -> str:
        """What the user calls it: its URL, or "kubo". Stands in errors, receipts and provenance."""

    @property
    def kind(self) -> str:
        """kubo, gateway, peer or hub."""

    async def read_block(self, cid: Cid) -> bytes:
        """One block as the source has it, at most MAX_BLOCK_BYTES, NOT verified.

        Raises SourceUnavailable, always with ``source`` and ``cid``. code: not_found or blocked (this block only);
        rate_limited (``retry_after_s`` says when, if known); truncated, stalled, tls_error, address_refused,
        redirect_refused, bad_source (answers, but not with blocks), block_too_large, auth_required or
        source_unavailable.
        Cancelling it frees its connection.
        """

    async def settled(self, cids: Sequence[Cid]) -> None:
        """Our copy of these leaves is verified and synced: a source that made a copy of its own for us may drop it.
        Never raises NodeError: what cannot be dropped is only logged."""

    async def aclose(self) -> None:
        """Frees what this source owns. Not to be called while a fetch uses it."""
