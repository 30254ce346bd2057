"""A plain CID in the Hub's words: what it is called as a repository, its one commit, and lines of its tree."""

from __future__ import annotations

import hashlib

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.sources.hub_answers import Lfs, TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo

PLAIN = "ipfs/"  # a CID as a repository: ipfs/<cid>
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"


def plain_repo(root: Cid) -> HubRepo:
    """What a CID is called that is no commit of any repository."""
    return HubRepo(f"{PLAIN}{root.canonical}")


def plain_commit(root: Cid) -> str:
    """The first 40 hex digits of its digest."""
    return root.digest.hex()[:40].ljust(40, "0")


def large_entry(path: str, sha256: str, size: int) -> TreeEntry:
    """A file in large file storage, as those of a plain CID all are. In git stands a pointer for it, whose text, and so
    whose oid, follows from the content's."""
    text = _POINTER.format(sha256=sha256, size=size).encode()
    oid = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
    return TreeEntry(path, size, oid, Lfs(sha256, size, len(text)))
