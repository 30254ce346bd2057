"""What is here of a commit of the Hub: its own model, or a selection of its files."""

from __future__ import annotations

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import Conflict
from ipfs_accelerate_node.fetch.hub_selection import paths_here, selections
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.fetch.outcome import Fetched
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.store import Store
from ipfs_accelerate_node.store.types import StoredModel

Paths = frozenset[str] | None  # None: every file that the commit's root has


def stored_commit(store: Store, snapshot: Snapshot, root: str | None = None) -> StoredModel | None:
    """The model under the commit's own root. root: as far as known from elsewhere."""
    if root is not None and (known := store.model(Cid.parse(root))) is not None:
        return known
    for model in store.models():
        provenance = model.provenance
        of = (provenance.hub_repo, provenance.hub_commit)
        if of == (str(snapshot.of_repo), snapshot.commit) and provenance.selection is None:
            return model
    return None


def having(store: Store, kept: KeptCommit, paths: Paths) -> StoredModel | None:
    """A stored model with all of those files of the commit: its own, else a selection. Blocks."""
    snapshot = kept.snapshot
    model = stored_commit(store, snapshot, kept.root)
    if model is not None and (model.complete or (paths is not None and paths <= paths_here(store, model))):
        return model
    parts = () if paths is None else reversed(selections(store, str(snapshot.of_repo), snapshot.commit))
    return next((part for part in parts if paths is not None and paths <= paths_here(store, part)), None)


def already_here(store: Store, model: StoredModel, name: str | None) -> Fetched:
    """A stored model, pinned and named, as the outcome of a fetch. Blocks. Raises NotFound, Conflict."""
    plan = store.plan(model.root)
    if plan is None:
        raise Conflict(f"{model.root} has just been removed; ask again")
    store.pin(model.root)
    if name is not None:
        store.set_name(model.root, name)
    return Fetched(
        model=store.model(model.root) or model,
        plan=plan,
        nodes=tuple(store.nodes(model.root)),
        bytes_total=plan.size_bytes,
        bytes_fetched=0,
        bytes_copied=0,
        seconds=0.0,
        sources=(),
        already_here=True,
    )
