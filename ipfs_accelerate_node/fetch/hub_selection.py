"""Some of a commit's files as a model under a root of its own, for as long as the CIDs of the others are not known.

A commit's root is made of all its files, so it cannot be known before they are. A selection never takes its place: its
provenance says that it is one, and what was left out. There is one of a commit at a time: what is chosen later joins
it, and it yields to the commit's own model as soon as that has all of its files. Both share their files on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ipfs_accelerate_node.content.build import BuiltFile, BuiltTree, tree_dag
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.dag_bytes import dag_bytes
from ipfs_accelerate_node.errors import Conflict, NodeError, NotFound
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.store import Store, StoredModel
from ipfs_accelerate_node.store.types import Selection

log = logging.getLogger(__name__)

MAX_NAMED = 500  # of the files that were left out; all are counted
MAX_NAMED_LETTERS = 100_000


def selections(store: Store, repo: str, commit: str) -> list[StoredModel]:
    """repo: as `HubRepo` is written. The one used last comes last. Blocks."""
    found = (model for model in store.models() if model.provenance.selection is not None)
    return [m for m in found if (m.provenance.hub_repo, m.provenance.hub_commit) == (repo, commit)]


def paths_here(store: Store, model: StoredModel) -> frozenset[str]:
    """Of the files of its plan that are here. Blocks."""
    plan = store.plan(model.root)
    if plan is None:
        return frozenset()
    try:
        absent = {file.path for file in store.absent(model.root)}
    except NotFound:
        return frozenset()
    return frozenset(file.path for file in plan.files) - absent


def left_out(snapshot: Snapshot, chosen: Iterable[str]) -> Selection:
    """What a selection says of the commit's other files."""
    have = set(chosen)
    others = [file for file in snapshot.files if file.path not in have]
    named: list[str] = []
    letters = 0
    for file in others[:MAX_NAMED]:
        letters += len(file.path)
        if letters > MAX_NAMED_LETTERS:
            break
        named.append(file.path)
    return Selection(tuple(named), len(others), sum(file.size for file in others))


def commit_tree(store: Store, kept: KeptCommit, built: Mapping[str, BuiltFile]) -> BuiltTree | None:
    """The whole commit's tree, with the root that is known of it, where only some of its files are built: the others
    have CIDs that are known here, but mostly no leaves. None where not all are known, or they do not make that root.
    Blocks."""
    if kept.root is None or kept.claimed:
        return None
    plan = store.plan(Cid.parse(kept.root))
    planned = {} if plan is None else {file.path: file for file in plan.files}
    files: dict[str, BuiltFile] = {}
    for file in kept.shown():
        listed, noted = planned.get(file.path), kept.cids.get(file.path)
        if file.path in built:
            files[file.path] = built[file.path]
        elif listed is not None:
            files[file.path] = BuiltFile(listed.cid, listed.size, listed.leaves, (), dag_bytes(listed.size))
        elif noted is not None:
            files[file.path] = BuiltFile(Cid.parse(noted), file.size, (), (), dag_bytes(file.size))
        else:
            return None
    tree = tree_dag(files)
    return tree if tree.plan.root == Cid.parse(kept.root).canonical else None


def supersede(store: Store, repo: str, commit: str, by: Cid) -> tuple[Cid, ...]:
    """Selections of that commit whose files the model by has too: it takes over their names and pin, and they go; those
    in use go with the next `gc`. Returns their roots. What the user shared stays as it is: that was said of those files
    alone. Blocks. Raises StorageError."""
    gone: list[Cid] = []
    for model in selections(store, repo, commit):
        if model.root == by.canonical or model.provenance.shared_at is not None:
            continue
        heir = store.model(by)
        if heir is None or not paths_here(store, model) <= paths_here(store, heir):
            continue
        try:
            _bequeath(store, model, heir)
        except NodeError as exc:  # it is there under its root all the same
            log.warning("hub.selection_stays root=%s reason=%s", model.root, exc)
            continue
        gone.append(model.root)
        log.info("hub.superseded root=%s by=%s repo=%s commit=%s", model.root, by, repo, commit)
    return tuple(gone)


def _bequeath(store: Store, model: StoredModel, heir: StoredModel) -> None:
    for name in model.names:
        store.drop_name(name)
        store.set_name(heir.root, name)
    if model.pinned:
        store.pin(heir.root)
    store.unpin(model.root)
    try:
        store.remove(model.root)
    except Conflict:
        store.set_announce(model.root, False)
