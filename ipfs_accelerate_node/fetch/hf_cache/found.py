"""What lies in a user's Hugging Face cache: repositories, commits, names of commits, files. Reads only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.errors import NodeError, NotFound
from ipfs_accelerate_node.fetch.hf_cache import layout
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo, is_commit
from ipfs_accelerate_node.store import disk


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot. folder: its repository's, in the cache. paths: of its files, also those that lead nowhere. refs:
    names that mean it. tree: what the client noted of the commit, None if it did not."""

    repo: HubRepo
    commit: str
    folder: str
    paths: frozenset[str]
    refs: tuple[str, ...]
    tree: tuple[TreeEntry, ...] | None

    def place(self, path: str) -> str:
        """In the cache."""
        return f"{self.folder}/{layout.SNAPSHOTS}/{self.commit}/{path}"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A folder that cannot be taken as a repository. reason: one line for a person."""

    folder: str
    code: str
    reason: str


def look(cache_dir: Path) -> Iterator[Found | Unreadable]:
    """Every snapshot of every repository, by name. Raises NotFound, Forbidden, UnsafeContent, StorageError."""
    with Folder.open(cache_dir) as cache, disk.storing(f"cannot read {cache_dir}"):
        for name in cache.folders():
            repo = layout.repo_of(name)
            if repo is None:
                continue
            try:
                found = list(_snapshots(cache, name, repo))
            except NodeError as exc:
                yield Unreadable(name, exc.code, str(exc))
            else:
                yield from found


def blob_name(cache: Folder, place: str) -> str | None:
    """The etag that the cache calls the file at that place, None where the file itself lies there."""
    *folders, name = place.split("/")
    with cache.below(*folders) as folder:
        found = folder.stat(name)
        if found is None or not stat.S_ISLNK(found.st_mode):
            return None
        target = os.readlink(name, dir_fd=folder.fd).rpartition("/")[2]
        return target if layout.is_etag(target) else None


def _snapshots(cache: Folder, name: str, repo: HubRepo) -> Iterator[Found]:
    with cache.below(name) as home:
        refs = _refs(home)
        try:
            snapshots = home.below(layout.SNAPSHOTS)
        except NotFound:
            return
        with snapshots:
            for commit in filter(is_commit, snapshots.folders()):
                with snapshots.below(commit) as snapshot:
                    paths = frozenset(snapshot.tree())
                meaning = tuple(ref for ref, meant in refs.items() if meant == commit)
                yield Found(repo, commit, name, paths, meaning, _tree(home, commit))


def _refs(home: Folder) -> dict[str, str]:
    try:
        folder = home.below(layout.REFS)
    except NotFound:
        return {}
    found: dict[str, str] = {}
    with folder:
        for path in folder.tree():
            *folders, name = path.split("/")
            with folder.below(*folders) as inner:
                data = inner.read(name, limit_bytes=layout.MAX_REF_BYTES)
            text = "" if data is None else data.decode("ascii", "replace").strip()
            if is_commit(text) and path.isascii() and path.isprintable():
                found[path] = text
    return found


def _tree(home: Folder, commit: str) -> tuple[TreeEntry, ...] | None:
    try:
        folder = home.below(layout.TREES)
    except NotFound:
        return None
    with folder:
        data = folder.read(f"{commit}.json", limit_bytes=layout.MAX_TREE_BYTES)
    return None if data is None else layout.decode_tree(data)
