"""What a reference means here, and what is known of each model: the stored ones, and what is loaded of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ipfs_accelerate_node.content.reference import DEFAULT_REVISION, HubRef, Reference, RootRef, parse_reference
from ipfs_accelerate_node.errors import NotFound
from ipfs_accelerate_node.inference.model import LoadedModel
from ipfs_accelerate_node.inference.registry import Registry
from ipfs_accelerate_node.store import Provenance, Store, StoredModel


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a request may name. id: its first name, else its root. created: seconds since the epoch."""

    id: str
    root: str
    names: tuple[str, ...]
    created: int
    implementation: Literal["REAL", "MOCK"]
    loaded: bool


@dataclass(frozen=True, slots=True)
class FileInfo:
    path: str
    cid: str
    size: int
    sha256: str
    git_sha1: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Everything the node knows of a stored model. loaded: the state of its worker, None when it has none; loads: the
    same of every form that it is loaded in."""

    model: StoredModel
    files: tuple[FileInfo, ...]
    loaded: LoadedModel | None
    loads: tuple[LoadedModel, ...] = ()


class Catalogue:
    """Reads the store and the registry, changes neither; safe to call from any thread."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._since = int(time.time())

    def find(self, ref: str) -> StoredModel:
        """The stored model that ``ref`` means. Raises NotFound, or BadRequest for what is no reference."""
        if (model := self.meant(parse_reference(ref), ref)) is None:
            raise NotFound(f"{ref} is not in the store", code="model_not_found")
        return model

    def meant(self, reference: Reference, text: str) -> StoredModel | None:
        """The same for a reference that is parsed already; None for what is not here. text: it may be a name."""
        if (named := self._store.named(text)) is not None:
            return self._store.model(named)
        match reference:
            case RootRef(cid=cid, path=path):
                try:
                    return self._store.model(self._store.resolve(cid, path) if path else cid.canonical)
                except NotFound:
                    return None
            case HubRef(named=repo, revision=revision):
                of_repo = [m for m in self._store.models() if _is_of_hub(m.provenance, repo, revision)]
                return max(of_repo, key=_preference, default=None)
            case _:
                return None

    def info(self, ref: str) -> ModelInfo:
        """Raises what `find` raises. Blocks; of a model that was just fetched until its files are hashed as a whole."""
        model = self.find(ref)
        plan = self._store.plan(model.root)
        stored = [(f.path, self._store.file(f.cid)) for f in ([] if plan is None else plan.files)]
        return ModelInfo(
            model=model,
            files=tuple(
                FileInfo(path, str(file.cid), file.size, hashes.sha256.hex(), hashes.git_sha1.hex())
                for path, file in stored
                if file is not None and (hashes := self._store.digests(file.cid))
            ),
            loaded=self._registry.find(str(model.root)),
            loads=tuple(loaded for loaded in self._registry.loaded() if loaded.root == str(model.root)),
        )

    def served(self) -> list[ServedModel]:
        """Every model that a request may name: the stored ones, and the mocks that are loaded."""
        loaded = {m.root: m for m in self._registry.loaded()}
        stored = [
            ServedModel(
                id=m.names[0] if m.names else str(m.root),
                root=str(m.root),
                names=m.names,
                created=int(datetime.fromisoformat(m.provenance.at).timestamp()),
                implementation="REAL",
                loaded=str(m.root) in loaded,
            )
            for m in self._store.models()
        ]
        mocks = [
            ServedModel(m.root, m.root, m.names, self._since, "MOCK", True)
            for m in loaded.values()
            if m.implementation == "MOCK"
        ]
        return stored + mocks


def _preference(model: StoredModel) -> tuple[bool, str, bool]:
    """What the Hub said before what somebody claims; then the latest; then the whole commit."""
    came = model.provenance
    return came.claimed_commit is None, came.at, came.selection is None


def _is_of_hub(provenance: Provenance, repo: str, revision: str) -> bool:
    """Without a revision any commit that is here: what main is now only the Hub knows, and only `pin` asks it."""
    commits = (provenance.hub_commit, provenance.claimed_commit)
    return provenance.hub_repo == repo and revision in (DEFAULT_REVISION, *commits)
