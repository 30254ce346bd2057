"""What the store says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipfs_accelerate_node.content.cid import Cid


@dataclass(frozen=True, slots=True)
class SourceShare:
    """What one source gave to a model. kind: kubo, gateway, peer, hub or local. rejected: answers that failed a check.
    seconds: for how long something was asked of it; 0 where nobody measured."""

    source: str
    kind: str
    bytes: int
    requests: int
    rejected: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SourceFailure:
    """Why a source got no further turn in a fetch. code: of the error (hash_mismatch, stalled, truncated, …); reason:
    one line for a person."""

    source: str
    kind: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a model with some of a commit's files lacks of it. left_out: paths, of very many only the first."""

    left_out: tuple[str, ...]
    left_out_files: int
    left_out_bytes: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model came from. at: ISO 8601, UTC. profile: import settings, where the root was made here. shared_at:
    when the user said that strangers may have it, whatever the Hub says. claimed_commit: what a peer, or the user's own
    cache, says that it is, and the Hub never did. selection: it has some of the commit's files under a root of its own,
    which is not the commit's; None for all else."""

    kind: Literal["cid", "hf", "local"]
    reference: str
    at: str
    sources: tuple[SourceShare, ...] = ()
    profile: str | None = None
    hub_repo: str | None = None
    hub_commit: str | None = None
    claimed_commit: str | None = None
    shared_at: str | None = None
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class StoredModel:
    """path: the read-only directory that a loader opens. last_used: a counter, larger is later; not a time.

    public: strangers who ask by CID are served. announce: they may also be told that it is here.
    size_bytes, file_count: of the files that are here; absent_files, absent_bytes: of those that an incomplete model
    lacks.
    """

    root: Cid
    path: Path
    size_bytes: int
    file_count: int
    names: tuple[str, ...]
    pinned: bool
    public: bool
    provenance: Provenance
    last_used: int
    announce: bool = False
    absent_files: int = 0
    absent_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether every file of its plan is here."""
        return self.absent_files == 0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A verified file. sha256: of the bytes, None while it was not hashed as a whole (`Store.digests` does it at once);
    git_sha1: of git's blob object (both are what Hugging Face calls an oid), empty for a file of more than 16 MiB,
    which the Hub never keeps in git. public: some public model holds it."""

    cid: Cid
    path: Path
    size: int
    sha256: bytes | None
    git_sha1: bytes
    public: bool


@dataclass(frozen=True, slots=True)
class LeafPlace:
    """Where the payload of a block lies on disk; the block is prefix + payload + suffix. Not hashed again."""

    path: Path
    offset: int
    length: int
    prefix: bytes = b""
    suffix: bytes = b""


@dataclass(frozen=True, slots=True)
class GcReport:
    """models: roots that were removed. files: those that no model held. freed_bytes also counts parts of files."""

    models: tuple[Cid, ...]
    freed_bytes: int
    files: tuple[Cid, ...] = ()


@dataclass(frozen=True, slots=True)
class CorruptFile:
    """paths: ``<root>/<path>`` of every place that held the file. reason: one line for a person."""

    cid: Cid
    paths: tuple[str, ...]
    roots: tuple[Cid, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """corrupt: quarantined, and their models taken down until fetched again."""

    files_checked: int
    bytes_checked: int
    corrupt: tuple[CorruptFile, ...]
