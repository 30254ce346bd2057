"""What a repository, a revision and a file of the Hub may be called (table F9h)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from ipfs_accelerate_node.content.reference import DATASETS
from ipfs_accelerate_node.errors import BadRequest

DEFAULT_REVISION = "main"
Kind = Literal["model", "dataset"]

_REPO = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)?[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubRepo:
    """id: ``org/name``, or a bare name for the oldest ones."""

    id: str
    kind: Kind = "model"

    @classmethod
    def named(cls, text: str) -> Self:
        """Of what `str` gives."""
        repo = text.removeprefix(DATASETS)
        return cls(repo, "model" if repo == text else "dataset")

    @property
    def path(self) -> str:
        """Where its files begin on the Hub."""
        return f"/{self.id}" if self.kind == "model" else f"/datasets/{self.id}"

    @property
    def api_path(self) -> str:
        return f"/api/{self.kind}s/{self.id}"

    def __str__(self) -> str:
        return self.id if self.kind == "model" else f"{DATASETS}{self.id}"


def check_repo(repo: str) -> None:
    """Raises BadRequest(invalid_reference) for what cannot be a repository's id (table F9h)."""
    if len(repo) > 96 or not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".", "-")):
        raise BadRequest(f"{repo[:80]!a} is not a Hub repository: org/name", code="invalid_reference", param="ref")


def checked_revision(revision: str) -> str:
    """Raises BadRequest(invalid_reference) for what cannot be a branch, a tag or a commit."""
    if not 0 < len(revision) <= 255 or not revision.isprintable() or ".." in revision or not revision.isascii():
        raise BadRequest(f"{revision[:80]!a} is not a revision", code="invalid_reference", param="ref")
    return revision


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def is_hidden(path: str) -> bool:
    """Hidden files belong to a commit, but to no root that is made of it."""
    return any(part.startswith(".") for part in path.split("/"))
