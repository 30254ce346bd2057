"""Names and small files of the Hugging Face cache, as huggingface_hub 2.4 writes and reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.errors import BadRequest, UnsafeContent
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo, Kind, check_repo
from ipfs_accelerate_node.sources.hub_plain import large_entry

BLOBS, REFS, SNAPSHOTS, TREES, LOCKS = "blobs", "refs", "snapshots", "trees", ".locks"
TAG_NAME = "CACHEDIR.TAG"
TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This file is a cache directory tag created by huggingface_hub.\n"
    b"# For information about cache directory tags, see:\n"
    b"#\thttps://bford.info/cachedir/\n"
)
MAX_TREE_BYTES = 32 << 20
MAX_REF_BYTES = 64
_TREE_VERSION = 1
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def folder_of(repo: HubRepo) -> str:
    return f"{repo.kind}s--{repo.id.replace('/', '--')}"


def repo_of(folder: str) -> HubRepo | None:
    """None for what is no model's or data set's."""
    prefix, _, name = folder.partition("--")
    kinds: dict[str, Kind] = {"models": "model", "datasets": "dataset"}
    repo_id = name.replace("--", "/")
    try:
        check_repo(repo_id)
    except BadRequest:
        return None
    return HubRepo(repo_id, kinds[prefix]) if prefix in kinds else None


def is_etag(name: str) -> bool:
    return _ETAG.fullmatch(name) is not None


def pointer(path: str, etag: str) -> str:
    """Where the entry at path in a snapshot leads to."""
    return "../" * (path.count("/") + 2) + f"{BLOBS}/{etag}"


@dataclass(frozen=True, slots=True)
class _Listed:
    size: int
    blob_id: str
    lfs_sha256: str | None = None
    lfs_size: int | None = None


@dataclass(frozen=True, slots=True)
class _TreeFile:
    format_version: int
    files: dict[str, _Listed]


def encode_tree(entries: Iterable[TreeEntry]) -> bytes:
    """What the client keeps of a commit's tree. Without a word of Xet: with it the client asks a service that is not
    here."""
    files: dict[str, dict[str, object]] = {}
    for entry in sorted(entries, key=lambda entry: entry.path):
        if not entry.folder:
            files[entry.path] = {"size": entry.size, "blob_id": entry.oid}
            if entry.lfs is not None:
                files[entry.path] |= {"lfs_sha256": entry.lfs.sha256, "lfs_size": entry.lfs.size}
    return json.dumps({"format_version": _TREE_VERSION, "files": files}, indent=1).encode()


def decode_tree(data: bytes) -> tuple[TreeEntry, ...] | None:
    """None for one that is damaged, of another version, or says what no tree can say."""
    try:
        tree = msgspec.json.decode(data, type=_TreeFile)
        check_tree(tree.files, ())
    except (msgspec.MsgspecError, UnsafeContent, RecursionError):
        return None
    if tree.format_version != _TREE_VERSION:
        return None
    entries = []
    for path, listed in tree.files.items():
        entry = _entry(path, listed)
        if entry is None:
            return None
        entries.append(entry)
    return tuple(entries)


def _entry(path: str, listed: _Listed) -> TreeEntry | None:
    oids = (listed.blob_id,) if listed.lfs_sha256 is None else (listed.blob_id, listed.lfs_sha256)
    lengths = (40, 64)
    if not 0 <= listed.size < 1 << 63 or any(
        not is_etag(oid) or len(oid) != length for oid, length in zip(oids, lengths, strict=False)
    ):
        return None
    if listed.lfs_sha256 is None:
        return TreeEntry(path, listed.size, listed.blob_id)
    if listed.lfs_size != listed.size:
        return None
    usual = large_entry(path, listed.lfs_sha256, listed.size)
    return TreeEntry(path, listed.size, listed.blob_id, usual.lfs)
