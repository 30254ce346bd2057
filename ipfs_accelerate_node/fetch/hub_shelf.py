"""What the Hub said of each repository and commit, kept so that it can be said again: offline, and in milliseconds.

``<cache>/hub/shelf/<repository>/``, a folder for each, has ``<commit>.json`` for every commit that was asked for (what
the Hub says of it, its whole tree, the CIDs of its files once known) and ``refs.json`` (which commit a name meant, and
when that was asked). Files are written atomically and read strictly: one that is damaged, of another version, or too
large counts as absent and is asked for again. Nothing of a caller is kept: no token, and not who asked.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ipfs_accelerate_node.fetch.hub_hidden import HiddenFiles
from ipfs_accelerate_node.sources.hub_answers import About, Commit, HubFile, TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo, Kind, is_commit, is_hidden
from ipfs_accelerate_node.sources.hub_snapshot import Snapshot
from ipfs_accelerate_node.store.disk import open_directory, read_file, write_file

log = logging.getLogger(__name__)

SHELF = "shelf"  # under <cache>/hub
CACHE = "huggingface cache"  # the source of what only a user's cache said
VERSION = 1
MAX_FILE_BYTES = 32 << 20  # of 10,000 files with long paths about 5 MB
MAX_REFS = 1000  # of a repository; the longest unasked goes first
MAX_REPOS = 10_000
KEPT_IN_MEMORY = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptCommit:
    """source: who said so, the Hub's origin, a peer, or the user's own cache. claimed: a peer said so and the Hub could
    not be asked.
    root: of the model that its files, without hidden ones, make; cids: of its files. Both as far as known."""

    kind: Kind
    repo: str
    commit: str
    restricted: bool
    said: Mapping[str, Any]
    entries: tuple[TreeEntry, ...]
    source: str
    claimed: bool = False
    root: str | None = None
    cids: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def of(cls, repo: HubRepo, answer: Commit, source: str) -> KeptCommit:
        about = answer.about
        return cls(repo.kind, repo.id, about.sha, about.restricted, about.said, answer.entries, source)

    @property
    def of_repo(self) -> HubRepo:
        return HubRepo(self.repo, self.kind)

    @property
    def confirmed(self) -> bool:
        """Whether the Hub itself said so: neither a peer, nor what lay in the user's cache."""
        return not self.claimed and self.source != CACHE

    @property
    def snapshot(self) -> Snapshot:
        about = About(self.commit, self.restricted, self.said)
        return Snapshot.of(self.of_repo, Commit(about, self.entries))

    def file(self, path: str) -> TreeEntry | None:
        return next((entry for entry in self.entries if entry.path == path and not entry.folder), None)

    def same_files(self, other: KeptCommit) -> bool:
        """Whether both have the same bytes at the same paths; who lists folders, or pointers, does not matter."""
        one, two = ({entry.file for entry in of.entries if not entry.folder} for of in (self, other))
        return one == two

    def shown(self) -> list[HubFile]:
        """The files that the root is made of."""
        return [entry.file for entry in self.entries if not entry.folder and not is_hidden(entry.path)]


@dataclass(frozen=True, slots=True)
class Ref:
    """commit: what the name meant at asked_s, seconds since the epoch by this machine's clock. claimed: by a peer."""

    commit: str
    asked_s: float
    source: str
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Refs:
    """refs: by the name that was asked for (``main``, ``refs/pr/1``). restricted: as last heard."""

    kind: Kind
    repo: str
    refs: Mapping[str, Ref] = field(default_factory=dict)
    restricted: bool = False
    version: int = VERSION


class HubShelf:
    """Blocks and may be used from several threads. One per cache: the store's lock keeps other processes away. What
    cannot be written is kept in memory as long as there is room."""

    def __init__(self, cache: Path, *, now_s: Callable[[], float] = time.time) -> None:
        self.rooted: Sequence[Callable[[KeptCommit], None]] = ()  # told of each root that is noted; may block
        self._root = cache / "hub" / SHELF
        self.hidden = HiddenFiles(cache)
        self._now_s = now_s
        for left in self._root.glob("*/*.tmp"):  # by a crash
            left.unlink(missing_ok=True)
        self._lock = threading.RLock()
        self._recent: OrderedDict[tuple[HubRepo, str], KeptCommit] = OrderedDict()
        self._refs: OrderedDict[HubRepo, Refs] = OrderedDict()

    def commit(self, repo: HubRepo, commit: str) -> KeptCommit | None:
        """What is kept of that commit; restricted too if its repository has become so since."""
        with self._lock:
            kept = self._recent.get((repo, commit))
            if kept is None:
                kept = self._read(repo, f"{commit}.json", KeptCommit) if is_commit(commit) else None
                if kept is None or (kept.of_repo, kept.commit) != (repo, commit):
                    return None
                self._remember((repo, commit), kept)
            else:
                self._recent.move_to_end((repo, commit))
            if self.refs(repo).restricted and not kept.restricted:
                return replace(kept, restricted=True)
            return kept

    def recent(self, most: int) -> Iterator[KeptCommit]:
        """Commits that are kept, those first that were written last; one that has gone meanwhile is left out."""
        with self._lock:
            paths = sorted(self._root.glob("*/*.json"), key=_written_ns, reverse=True)
        for path in [path for path in paths if is_commit(path.stem)][:most]:
            kept = self._decoded(path.parent, path.name, KeptCommit)
            if kept is not None:
                yield kept

    def refs(self, repo: HubRepo) -> Refs:
        with self._lock:
            refs = self._refs.get(repo)
            if refs is None:
                refs = self._read(repo, "refs.json", Refs)
                if refs is None or (refs.kind, refs.repo) != (repo.kind, repo.id):
                    refs = Refs(repo.kind, repo.id)
                self._refs[repo] = refs
                while len(self._refs) > KEPT_IN_MEMORY:
                    self._refs.popitem(last=False)
            return refs

    def ref(self, repo: HubRepo, revision: str) -> tuple[str, float] | None:
        """The commit that revision meant, and how many seconds ago the Hub said so: 0 for a commit, which never moves;
        infinite where only a peer said so, or the clock was set back."""
        if is_commit(revision):
            return revision, 0.0
        known = self.refs(repo).refs.get(revision)
        if known is None:
            return None
        age_s = self._now_s() - known.asked_s
        return known.commit, age_s if age_s >= 0 and not known.claimed else math.inf

    def keep(self, kept: KeptCommit, revision: str | None = None) -> KeptCommit:
        """Writes an answer down, and that revision meant this commit just now. CIDs that are known stay known, but for
        those that only a peer claimed; what the Hub itself said is not replaced by a peer's word."""
        repo, source, claimed = kept.of_repo, kept.source, kept.claimed
        with self._lock:
            old = self._recent.get((repo, kept.commit)) or self.commit(repo, kept.commit)
            if old is not None and kept.claimed and not old.claimed:
                kept = old
            elif old is not None and old.same_files(kept) and old.claimed <= kept.claimed:
                kept = replace(kept, root=kept.root or old.root, cids={**old.cids, **kept.cids})
            if kept != old:
                self._write(repo, f"{kept.commit}.json", kept)
                self._remember((repo, kept.commit), kept)
            said = Ref(kept.commit, self._now_s(), source, claimed)
            self._put_ref(repo, revision, said, kept.restricted or (claimed and self.refs(repo).restricted))
            return kept

    def note_ref(self, repo: HubRepo, revision: str, about: About, source: str) -> None:
        """That revision means this commit now; the commit itself is kept already."""
        with self._lock:
            self._put_ref(repo, revision, Ref(about.sha, self._now_s(), source), about.restricted)

    def note_cids(self, repo: HubRepo, commit: str, cids: Mapping[str, str], root: str | None = None) -> None:
        """CIDs of files that were stored here, so checked against their oids."""
        with self._lock:
            kept = self.commit(repo, commit)
            if kept is None:
                return
            kept = self.keep(replace(kept, cids={**kept.cids, **cids}, root=root or kept.root))
        if root is not None:
            for told in self.rooted:
                told(kept)

    def forget_claim(self, repo: HubRepo, commit: str, source: str, root: str | None) -> None:
        """What source claimed of that commit was wrong: it goes, and so does a root that was taken from it."""
        with self._lock:
            kept = self.commit(repo, commit)
            if kept is None:
                return
            if kept.claimed and kept.source == source:
                self._recent.pop((repo, commit), None)
                (self._folder(repo) / f"{commit}.json").unlink(missing_ok=True)
            elif kept.root is not None and kept.root == root:
                self._write(repo, f"{commit}.json", fresh := replace(kept, root=None))
                self._remember((repo, commit), fresh)

    # private

    def _put_ref(self, repo: HubRepo, revision: str | None, ref: Ref, restricted: bool) -> None:
        before = self.refs(repo)
        refs = dict(before.refs)
        if revision is not None and not is_commit(revision):
            refs.pop(revision, None)
            refs[revision] = ref
            while len(refs) > MAX_REFS:
                del refs[next(iter(refs))]
        after = replace(before, refs=refs, restricted=restricted)
        if after != before:
            self._write(repo, "refs.json", after)
            self._refs[repo] = after

    def _remember(self, key: tuple[HubRepo, str], kept: KeptCommit) -> None:
        self._recent[key] = kept
        self._recent.move_to_end(key)
        while len(self._recent) > KEPT_IN_MEMORY:
            self._recent.popitem(last=False)

    def _folder(self, repo: HubRepo) -> Path:
        return self._root / hashlib.sha256(f"{repo.kind}/{repo.id}".encode()).hexdigest()[:32]

    def _read(self, repo: HubRepo, name: str, form: type[T]) -> T | None:
        return self._decoded(self._folder(repo), name, form)

    def _decoded(self, folder: Path, name: str, form: type[T]) -> T | None:
        try:
            with _directory(folder) as fd:
                data = read_file(name, dir_fd=fd, limit_bytes=MAX_FILE_BYTES)
        except OSError:
            return None
        try:
            found = msgspec.json.decode(data, type=form)
        except (msgspec.MsgspecError, RecursionError):
            log.warning("hub_shelf.damaged folder=%s file=%s", folder.name, name)
            return None
        return found if getattr(found, "version", None) == VERSION else None

    def _write(self, repo: HubRepo, name: str, value: KeptCommit | Refs) -> None:
        data = msgspec.json.encode(value)
        if len(data) > MAX_FILE_BYTES:
            log.warning("hub_shelf.too_large repo=%s file=%s bytes=%d", repo, name, len(data))
            return
        folder = self._folder(repo)
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, parents=True)
                self._make_room()
            with _directory(folder) as fd:
                write_file(name, data, dir_fd=fd)
        except OSError as exc:  # a full disk is no reason to answer nobody: memory has it until the next write
            log.warning("hub_shelf.not_written repo=%s reason=%s", repo, exc.strerror)

    def _make_room(self) -> None:
        folders = sorted(self._root.iterdir(), key=lambda path: path.lstat().st_mtime)
        for folder in folders[:-MAX_REPOS]:
            shutil.rmtree(folder, ignore_errors=True)


def _written_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = open_directory(path)
    try:
        yield fd
    finally:
        os.close(fd)
