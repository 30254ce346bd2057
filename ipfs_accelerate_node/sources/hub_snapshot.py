"""A commit as something to fetch: its files, the hash that each must have, and what fetching it costs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ipfs_accelerate_node.sources.hub_answers import Commit, HubFile
from ipfs_accelerate_node.sources.hub_names import HubRepo, Kind, is_hidden

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a repository, as far as a root is made of it: files has no hidden ones, in path order.

    restricted: private or gated, so never announced or served to others. answer: all that the Hub said of it.
    """

    repo: str
    commit: str
    restricted: bool
    files: tuple[HubFile, ...]
    kind: Kind = "model"
    answer: Commit | None = None

    @classmethod
    def of(cls, repo: HubRepo, answer: Commit) -> Self:
        shown = (file for file in answer.files if not is_hidden(file.path))
        files = tuple(sorted(shown, key=lambda file: file.path))
        return cls(repo.id, answer.about.sha, answer.about.restricted, files, repo.kind, answer)

    @property
    def of_repo(self) -> HubRepo:
        return HubRepo(self.repo, self.kind)

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


class OidHash:
    """The Hub's oid of a file, computed as its bytes arrive: sha256, or git's sha1 over a header and the bytes."""

    def __init__(self, file: HubFile) -> None:
        self._hash: _Hash = hashlib.sha256() if len(file.oid) == 64 else hashlib.sha1(usedforsecurity=False)
        if len(file.oid) == 40:
            self._hash.update(b"blob %d\0" % file.size)

    def update(self, payload: bytes) -> None:
        self._hash.update(payload)

    @property
    def oid(self) -> str:
        return self._hash.hexdigest()


@dataclass(slots=True)
class Traffic:
    """What one fetch cost this source so far."""

    bytes: int = 0
    requests: int = 0
    rejected: int = 0
