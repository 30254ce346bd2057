"""A CID as a repository of the Hub: ``ipfs/<cid>``, at the one commit it can have."""

from __future__ import annotations

from ipfs_accelerate_node.content import unixfs
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.errors import BadContent, NotFound
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources import hub_plain
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION
from ipfs_accelerate_node.store import Store, StoredFile

MAX_ENTRIES = 10_000


def plain_commit(store: Store, cid: Cid, repo: str, revision: str) -> KeptCommit:
    """The public directory of that CID as a commit, its files as of large file storage. Blocks.

    Raises NotFound: there is none (hub_code RepoNotFound), or it has no such revision (RevisionNotFound).
    """
    commit = hub_plain.plain_commit(cid)
    if revision not in (DEFAULT_REVISION, commit):
        raise NotFound(f"{repo} is one commit, {commit}", hub_code="RevisionNotFound")
    files = _files(store, cid)
    if files is None:
        raise NotFound(f"{cid} is no directory that is here: pin it first", hub_code="RepoNotFound", cid=str(cid))
    said = {"tags": ["ipfs"], "private": False, "gated": False}
    entries = tuple(
        hub_plain.large_entry(path, store.digests(file.cid).sha256.hex(), file.size)
        for path, file in sorted(files.items())
    )
    cids = {path: str(file.cid) for path, file in files.items()}
    return KeptCommit("model", repo, commit, False, said, entries, "here", root=str(cid.canonical), cids=cids)


def has_entry(store: Store, cid: Cid, name: str) -> bool:
    """Whether the public directory of that CID has such an entry. Blocks."""
    try:
        return unixfs.child(lambda block: store.block(block, public_only=True), cid.canonical, name) is not None
    except (BadContent, NotFound):
        return False


def is_directory(store: Store, cid: Cid) -> bool:
    """A public one that is here. Blocks."""
    block = store.block(cid, public_only=True) if cid.codec == DAG_PB else None
    if block is None:
        return False
    try:
        return unixfs.decode(block).type in (unixfs.NodeType.DIRECTORY, unixfs.NodeType.HAMT_SHARD)
    except BadContent:
        return False


def _files(store: Store, root: Cid) -> dict[str, StoredFile] | None:
    """By path, those that are here; None where root is no directory."""
    if not is_directory(store, root):
        return None
    found: dict[str, StoredFile] = {}
    folders = [("", root.canonical)]
    while folders:
        folder, cid = folders.pop()
        for entry in unixfs.entries(lambda block: store.block(block, public_only=True), cid):
            path = f"{folder}{entry.name}"
            file = store.file(entry.cid, public_only=True)
            if file is not None:
                found[path] = file
            elif is_directory(store, entry.cid):
                folders.append((f"{path}/", entry.cid))
            if len(found) + len(folders) > MAX_ENTRIES:
                raise BadContent(f"{root} has more than {MAX_ENTRIES} files", code="too_many_files")
    return found
