"""`hydrate`: a stored model as the Hugging Face cache has it, so that any tool loads it offline.

Written in this order: blobs, entries of the snapshot, the tree (only if every file that it lists is there), refs. So
whenever it stops, what is there is a cache as a client's broken download leaves it, and the next run goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.content.reference import HubRef, Reference, parse_reference
from ipfs_accelerate_node.errors import BadRequest, NotFound
from ipfs_accelerate_node.fetch.hf_cache import layout
from ipfs_accelerate_node.fetch.hf_cache.folder import Folder
from ipfs_accelerate_node.fetch.hf_cache.placing import WAYS, Blob, How, Way, client_waits, content_etag, place, point
from ipfs_accelerate_node.fetch.hf_cache.watch import LinkWatch
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.sources import hub_plain
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo, checked_revision, is_hidden
from ipfs_accelerate_node.store import Store, StoredFile, StoredModel, disk

log = logging.getLogger(__name__)

Meant = Callable[[Reference, str], StoredModel | None]


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be written of a commit. tree: every file that it has, also those that are not here. refs: names that
    mean it, and when that was said (seconds since the epoch). files: by path. cids: of those from the store."""

    repo: HubRepo
    commit: str
    tree: tuple[TreeEntry, ...]
    files: dict[str, Blob]
    refs: dict[str, float]
    root: str | None = None
    claimed: bool = False
    cids: dict[str, Cid] = field(default_factory=dict)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.tree if not entry.folder and entry.path not in self.files)


@dataclass(frozen=True, slots=True)
class HydratedFile:
    """how: hard link, reflink, copy, or that it was there already."""

    path: str
    etag: str
    size: int
    how: How


@dataclass(frozen=True, slots=True)
class Share:
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Hydrated:
    """ways: of each way that was gone, how many files and bytes. refs: names that mean this commit there now;
    refs_kept: those that mean another one there, by a younger answer of the Hub. absent: files of the commit that are
    not here. claimed: that these are its files is only a peer's word."""

    repo: str
    commit: str
    root: str | None
    snapshot: Path
    files: tuple[HydratedFile, ...]
    ways: dict[str, Share]
    refs: tuple[str, ...]
    refs_kept: tuple[str, ...]
    absent: tuple[str, ...]
    claimed: bool


class Hydration:
    """Blocks; worker threads only. watch: told of every hard link."""

    def __init__(self, store: Store, shelf: HubShelf, watch: LinkWatch, meant: Meant) -> None:
        self._store = store
        self._shelf = shelf
        self._watch = watch
        self._meant = meant

    def run(self, ref: str, cache_dir: Path, ways: Sequence[Way] = WAYS) -> Hydrated:
        """cache_dir: what `HF_HUB_CACHE` names, of the user who runs this process.

        Raises NotFound (nothing of ref is here; code no_tree: it is not known which files the commit has), Conflict
        (code blob_differs), Forbidden, UnsafeContent, StorageError.
        """
        content = self.content(ref)
        with self._held(content):
            done = write(content, cache_dir, ways)
        self._watch.note(content.cids[f.path] for f in done.files if f.how == "hard" and f.path in content.cids)
        log.info("hydrate.done repo=%s commit=%s files=%d", done.repo, done.commit, len(done.files))
        return done

    def content(self, ref: str) -> Content:
        """Raises NotFound, BadRequest."""
        reference = parse_reference(ref)
        model = self._meant(reference, ref)
        if isinstance(reference, HubRef) and self._store.named(ref) is None:
            return self._of_hub(HubRepo(reference.repo, reference.kind), checked_revision(reference.revision), model)
        if model is None:
            raise NotFound(f"{ref} is not in the store", code="model_not_found")
        repo = model.provenance.hub_repo
        commit = model.provenance.hub_commit or model.provenance.claimed_commit
        if repo is None or commit is None:
            return self._plain(model)
        return self._of_hub(HubRepo.named(repo), commit, model)

    # private

    @contextlib.contextmanager
    def _held(self, content: Content) -> Iterator[None]:
        """The model, if its files are one's, is not removed meanwhile."""
        with contextlib.ExitStack() as stack:
            if content.root is not None:
                with contextlib.suppress(NotFound):
                    stack.enter_context(self._store.use(Cid.parse(content.root)))
            yield

    def _of_hub(self, repo: HubRepo, revision: str, model: StoredModel | None) -> Content:
        """Of the commit that revision means, if all of its model is here; else of the one whose model is stored."""
        meant = self._shelf.ref(repo, revision)
        stored = None if model is None else model.provenance.hub_commit or model.provenance.claimed_commit
        found: list[Content] = []
        for commit in dict.fromkeys(c for c in (meant and meant[0], stored) if c is not None):
            kept = self._shelf.commit(repo, commit)
            if kept is not None and (content := self._of_kept(kept)).files:
                found.append(content)
        if not found:
            if model is not None:
                raise NotFound(
                    f"which files {repo}@{stored} has is not kept here: pin hf:{repo}@{stored} again", code="no_tree"
                )
            raise NotFound(f"nothing of {repo}@{revision} is in the store: pin it first", code="model_not_found")
        whole = [content for content in found if not any(not is_hidden(path) for path in content.absent)]
        content = (whole or found)[0]
        if model is not None and stored == content.commit:
            content = replace(content, root=str(model.root))
        return content

    def _of_kept(self, kept: KeptCommit) -> Content:
        files: dict[str, Blob] = {}
        cids: dict[str, Cid] = {}
        for entry in kept.entries:
            if entry.folder:
                continue
            oid = entry.file.oid
            stored = self._store.of_oid(bytes.fromhex(oid), entry.size, public_only=kept.claimed)
            if stored is not None:
                files[entry.path], cids[entry.path] = Blob(oid, stored.size, stored.path), stored.cid
            elif is_hidden(entry.path) and (seen := self._shelf.hidden.find(entry.file)) is not None:
                files[entry.path] = Blob(oid, entry.size, seen)
        refs = {
            name: ref.asked_s for name, ref in self._shelf.refs(kept.of_repo).refs.items() if ref.commit == kept.commit
        }
        return Content(kept.of_repo, kept.commit, kept.entries, files, refs, kept.root, kept.claimed, cids)

    def _plain(self, model: StoredModel) -> Content:
        plan = self._store.plan(model.root)
        if plan is None:
            raise NotFound(f"{model.root} has just left the store", code="model_not_found")
        if any(not file.path for file in plan.files):
            raise BadRequest(f"{model.root} is a single file, which no repository is", code="not_a_directory")
        stored = {file.path: self._store.file(file.cid) for file in plan.files}
        here: dict[str, StoredFile] = {path: file for path, file in stored.items() if file is not None}
        blobs = {path: Blob(_sha256(file), file.size, file.path) for path, file in here.items()}
        tree = tuple(hub_plain.large_entry(path, blob.etag, blob.size) for path, blob in sorted(blobs.items()))
        lacking = tuple(TreeEntry(path, 0, "") for path in sorted(stored.keys() - here.keys()))
        return Content(
            hub_plain.plain_repo(model.root),
            hub_plain.plain_commit(model.root),
            tree + lacking,
            blobs,
            {DEFAULT_REVISION: float("inf")},
            str(model.root),
            cids={path: file.cid for path, file in here.items()},
        )


def _sha256(file: StoredFile) -> str:
    if file.sha256:
        return file.sha256.hex()
    with disk.storing(f"cannot read {file.cid}"):
        fd = disk.open_read(file.path)
        try:
            return content_etag(fd, file.size, git=False)
        finally:
            os.close(fd)


def write(content: Content, cache_dir: Path, ways: Sequence[Way] = WAYS) -> Hydrated:
    """As `Hydration.run`. May be called again: what is there stays."""
    check_tree(content.files)
    name = layout.folder_of(content.repo)
    with Folder.open(cache_dir) as cache, disk.storing(f"cannot write to {cache_dir}"):
        if cache.stat(layout.TAG_NAME) is None:
            disk.write_file(layout.TAG_NAME, layout.TAG, dir_fd=cache.fd, mode=0o644)
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(cache.below(name, make=True))
            locks = _locks(stack, cache, name)
            files = _write_blobs(home, content, ways, locks)
            with home.below(layout.SNAPSHOTS, content.commit, make=True) as snapshot:
                for path, blob in content.files.items():
                    point(snapshot, path, blob)
            _write_tree(home, content)
            refs, kept = _write_refs(home, content)
    shares = {way: [file for file in files if file.how == way] for way in (*WAYS, "here")}
    return Hydrated(
        str(content.repo),
        content.commit,
        content.root,
        cache_dir / name / layout.SNAPSHOTS / content.commit,
        tuple(files),
        {way: Share(len(of), sum(file.size for file in of)) for way, of in shares.items() if of},
        refs,
        kept,
        content.absent,
        content.claimed,
    )


def _write_blobs(home: Folder, content: Content, ways: Sequence[Way], locks: Folder | None) -> list[HydratedFile]:
    done: dict[str, How] = {}
    with home.below(layout.BLOBS, make=True) as blobs:
        for blob in content.files.values():
            if blob.etag not in done:
                with client_waits(locks, blob.etag):
                    done[blob.etag] = place(blobs, blob, ways)
        os.fsync(blobs.fd)
    return [HydratedFile(path, blob.etag, blob.size, done[blob.etag]) for path, blob in content.files.items()]


def _locks(stack: contextlib.ExitStack, cache: Folder, name: str) -> Folder | None:
    try:
        return stack.enter_context(cache.below(layout.LOCKS, name))
    except NotFound:
        return None


def _write_tree(home: Folder, content: Content) -> None:
    """A snapshot that lacks a file which its tree lists counts as broken, so then there is no tree."""
    if content.absent:
        return
    with home.below(layout.TREES, make=True) as trees:
        if trees.stat(f"{content.commit}.json") is None:
            disk.write_file(f"{content.commit}.json", layout.encode_tree(content.tree), dir_fd=trees.fd, mode=0o644)


def _write_refs(home: Folder, content: Content) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that mean the commit now, and those that a client has learnt to mean another since."""
    written: list[str] = []
    kept: list[str] = []
    for ref, asked_s in sorted(content.refs.items()):
        *folders, name = checked_revision(ref).split("/")
        check_tree([ref])
        with home.below(layout.REFS, *folders, make=True) as folder:
            found = folder.stat(name)
            there = folder.read(name, limit_bytes=layout.MAX_REF_BYTES)
            if there == content.commit.encode():
                written.append(ref)
            elif found is not None and (not stat.S_ISREG(found.st_mode) or found.st_mtime > asked_s):
                kept.append(ref)
            else:
                disk.write_file(name, content.commit.encode(), dir_fd=folder.fd, mode=0o644)
                written.append(ref)
    return tuple(written), tuple(kept)
