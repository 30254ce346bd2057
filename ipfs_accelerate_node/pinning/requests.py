"""What a pinning service is asked and answers, as values: Pinning Service API 1.0.0, `PinObject` and `PinStatus`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from ipfs_accelerate_node.content.cid import Cid

API_VERSION = "1.0.0"


class Status(StrEnum):
    """queued: its turn has not come, or will come again after a failure that may pass."""

    QUEUED = "queued"
    PINNING = "pinning"
    PINNED = "pinned"
    FAILED = "failed"


class Match(StrEnum):
    """How a name is compared: whole or in part, with or without regard to case."""

    EXACT = "exact"
    IEXACT = "iexact"
    PARTIAL = "partial"
    IPARTIAL = "ipartial"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be kept. name, meta: the caller's own words for it, of no meaning here. origins: multiaddrs of who is
    said to have it."""

    cid: Cid
    name: str | None = None
    origins: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The same text for all spellings of the CID."""
        return str(self.cid.canonical)


@dataclass(frozen=True, slots=True)
class PinRequest:
    """One request. owner: the id of the key that made it. created_ms: since 1970, of no two requests the same.
    info: what there is to say of the status."""

    id: str
    owner: str
    ask: Ask
    created_ms: int
    status: Status
    info: Mapping[str, str] = field(default_factory=dict)

    @property
    def created(self) -> str:
        """RFC 3339, to the millisecond: what JavaScript's dates keep, so that no page of a list is lost to rounding."""
        return datetime.fromtimestamp(self.created_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of a list; every filter that is given has to hold. cids: canonical. before_ms, after_ms: created strictly so.
    meta: these keys with these values, among others."""

    cids: tuple[str, ...] = ()
    name: str | None = None
    match: Match = Match.EXACT
    statuses: tuple[Status, ...] = (Status.PINNED,)
    before_ms: float | None = None
    after_ms: float | None = None
    limit: int = 10
    meta: Mapping[str, str] = field(default_factory=dict)
