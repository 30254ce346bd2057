"""The Hub's JSON out of what is kept of a commit: about a repository, pages of its tree, lines of paths.

Never a word of Xet: a client that reads a hash of it asks a service that is not here, and fails without trying HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_answers import TreeEntry

Json = dict[str, object]


def about(kept: KeptCommit, entries: Iterable[TreeEntry], *, blobs: bool) -> Json:
    """entries: of the commit, by path. blobs: with size and oid of each file."""
    said: Json = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    said |= {**kept.said, "id": kept.repo, "sha": kept.commit}
    if kept.kind == "model":
        said["modelId"] = kept.repo
    return {**said, "siblings": [_sibling(entry, blobs) for entry in entries if not entry.folder]}


def _sibling(entry: TreeEntry, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": entry.path}
    line: Json = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    if (lfs := entry.lfs) is not None:
        line["lfs"] = {"sha256": lfs.sha256, "size": lfs.size, "pointerSize": lfs.pointer_size}
    return line


def line(entry: TreeEntry) -> Json:
    """Of a tree or of paths."""
    if entry.folder:
        return {"type": "directory", "oid": entry.oid, "size": 0, "path": entry.path}
    said: Json = {"type": "file", "oid": entry.oid, "size": entry.size, "path": entry.path}
    if (lfs := entry.lfs) is not None:
        said["lfs"] = {"oid": lfs.sha256, "size": lfs.size, "pointerSize": lfs.pointer_size}
    return said


def references(refs: Mapping[str, str]) -> Json:
    """refs: full name to commit."""
    kinds: dict[str, list[Json]] = {"branches": [], "converts": [], "tags": []}
    places = {"refs/heads/": "branches", "refs/convert/": "converts", "refs/tags/": "tags"}
    for ref, commit in sorted(refs.items()):
        for prefix, kind in places.items():
            if ref.startswith(prefix):
                kinds[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit})
    return dict(kinds)


def with_folders(entries: Iterable[TreeEntry]) -> list[TreeEntry]:
    """By path. Folders that nobody listed get the oid that git gives them, all files being plain ones (mode 100644)."""
    listed = {entry.path: entry for entry in entries}
    wanted: set[str] = set()
    for path in listed:
        while (path := path.rpartition("/")[0]) and path not in wanted:
            wanted.add(path)
    for folder in sorted(wanted - set(listed), key=lambda path: path.count("/"), reverse=True):
        below = [entry for path, entry in listed.items() if path.rpartition("/")[0] == folder]
        listed[folder] = TreeEntry(folder, 0, _tree_oid(below), folder=True)
    return [listed[path] for path in sorted(listed)]


def _tree_oid(entries: Iterable[TreeEntry]) -> str:
    def place(entry: TreeEntry) -> bytes:
        return (entry.path.rpartition("/")[2] + ("/" if entry.folder else "")).encode()

    body = b"".join(
        (b"40000 " if entry.folder else b"100644 ") + place(entry).removesuffix(b"/") + b"\0" + bytes.fromhex(entry.oid)
        for entry in sorted(entries, key=place)
    )
    return hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
