"""Signed maps on disk: ``<cache>/maps/<commit of a repository>/<signer>.map``, our own and those of peers.

Each is one file, written whole or not at all, and verified again when it is read; one that does not verify counts as
absent. Of a signer and a commit only the newest is kept, so an older one that somebody sends again is refused. Whose
map turned out wrong is remembered in ``refuted.json``, and not believed for `DEMOTED_S`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.errors import BadContent, NodeError, NotFound
from ipfs_accelerate_node.records.envelope import SealedBlocks
from ipfs_accelerate_node.records.hub_map import HubMap, OpenedMap, open_map, seal_map
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

MAX_PARCEL_BYTES = 24 << 20  # base64 of what a map's blocks may be in practice: 10,000 files with long paths
MAX_COMMITS = 4096  # of peers and of our own together; the longest untouched goes first
MAX_SIGNERS = 16  # of one commit
DEMOTED_S = 30 * 24 * 3600
_MAX_REFUTED = 4096
_REFUTED, _PUBLISHED = "refuted.json", "published"


class Parcel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed map as it travels and lies on disk. blocks: its record, and the blocks of files that this links."""

    envelope: bytes
    blocks: list[bytes]

    @classmethod
    def of(cls, sealed: SealedBlocks) -> Parcel:
        blocks = [block for cid, block in sealed.blocks if cid != sealed.envelope_cid]
        return cls(sealed.sealed.envelope_bytes, blocks)

    def open(self, *, now: int | None, newest: tuple[int, Cid] | None = None) -> OpenedMap:
        """See `open_map`."""
        blocks = {Cid.of(block, DAG_CBOR): block for block in self.blocks}
        return open_map(self.envelope, blocks, now=now, newest=newest)

    def listed(self) -> list[tuple[Cid, bytes]]:
        """Every block, the envelope last."""
        return [(Cid.of(block, DAG_CBOR), block) for block in (*self.blocks, self.envelope)]


class Refuted(msgspec.Struct, frozen=True):
    """Why a signer is not believed: where its map was wrong. at_s: since 1970, by this machine's clock."""

    at_s: int
    envelope: str
    repo: str
    commit: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeptMap:
    opened: OpenedMap
    parcel: Parcel


class MapShelf:
    """Blocks and may be used from several threads. key: ours; what it signed is our own."""

    def __init__(self, cache: Path, key: NodeKey, *, now_s: Callable[[], float] = time.time) -> None:
        self._root = cache / "maps"
        self._key = key
        self.now_s = now_s
        self._lock = threading.RLock()
        self._last_seq = 0

    @staticmethod
    def verified(parcel: Parcel) -> KeptMap:
        """A map as it stands, good today, whoever signed it; nothing is kept. Raises BadContent, IntegrityError."""
        return KeptMap(parcel.open(now=int(time.time())), parcel)

    def own(self, repo: HubRepo, commit: str) -> KeptMap | None:
        """Our own map, also one that has expired."""
        with self._lock:
            return self._read(repo, commit, self._key.peer_id, now=None)

    def keep_own(self, made: Callable[[int, int], HubMap]) -> KeptMap:
        """Signs and keeps the map that made gives for the time of now and the next number. Raises StorageError,
        BadContent (bad_record) for what cannot be said in a map."""
        with self._lock:
            now = int(self.now_s())
            self._last_seq = max(self._last_seq + 1, now)  # grows also where everything that was kept is lost
            hub_map = made(now, self._last_seq)
            before = self.own(HubRepo(hub_map.repo, hub_map.repo_type), hub_map.commit)
            if before is not None and before.opened.map.seq >= self._last_seq:  # the clock was set back
                self._last_seq = before.opened.map.seq + 1
                hub_map = made(now, self._last_seq)
            parcel = Parcel.of(seal_map(hub_map, self._key))
            kept = KeptMap(parcel.open(now=None), parcel)
            self._write(kept)
            return kept

    def take(self, parcel: Parcel, repo: HubRepo, commit: str | None) -> KeptMap:
        """A peer's map, verified and kept. commit: None takes a map of any.

        Raises BadContent (bad_record, bad_signature, record_expired, record_from_future, record_stale,
        signer_refuted) and IntegrityError. Our own is taken as it is here.
        """
        now = int(self.now_s())
        kept = KeptMap(parcel.open(now=now), parcel)
        found, signer = kept.opened.map, kept.opened.signer
        if (found.repo, found.repo_type) != (repo.id, repo.kind) or commit not in (None, found.commit):
            raise BadContent("the map is of something else", code="bad_record")
        with self._lock:
            if signer == self._key.peer_id:
                return self.own(repo, found.commit) or kept
            if signer in self.refuted():
                raise BadContent(f"{signer} signed a map that was wrong", code="signer_refuted")
            before = self._read(repo, found.commit, signer, now=None)
            if before is not None:
                last = before.opened
                parcel.open(now=now, newest=(last.map.seq, last.record_cid))
            if before is None or before.parcel != parcel:
                self._write(kept)
            return kept

    def of(self, repo: HubRepo, commit: str) -> list[KeptMap]:
        """Peers' maps of a commit that are still good, those that know most first."""
        with self._lock:
            now, refuted = int(self.now_s()), self.refuted()
            signers = [name for name in self._signers(repo, commit) if name not in refuted]
            found = [self._read(repo, commit, name, now=now) for name in signers if name != self._key.peer_id]
            maps = [kept for kept in found if kept is not None]
            return sorted(maps, key=lambda kept: (kept.opened.map.root is None, -kept.opened.map.known))

    def find(self, envelope: Cid) -> KeptMap:
        """By the envelope's CID, whoever signed it. Raises NotFound."""
        with self._lock:
            for path in sorted(self._root.glob("*/*.map")):
                kept = self._opened(path, now=None)
                if kept is not None and kept.opened.envelope_cid == envelope:
                    return kept
        raise NotFound(f"no map {envelope} is here", code="no_map")

    def refute(self, kept: KeptMap, path: str, reason: str) -> None:
        """That map is wrong: it is thrown away, and its signer is named and not believed any more."""
        opened = kept.opened
        found = opened.map
        repo = HubRepo(found.repo, found.repo_type)
        log.warning(
            "map.refuted signer=%s repo=%s commit=%s path=%s reason=%s",
            opened.signer, repo, found.commit, ascii(path[:200]), ascii(reason[:200]),
        )  # fmt: skip
        if opened.signer == self._key.peer_id:
            self._forget(repo, found.commit, opened.signer)
            return
        with self._lock:
            known = self.refuted()
            known.pop(opened.signer, None)
            said = Refuted(int(self.now_s()), str(opened.envelope_cid), str(repo), found.commit, path, reason)
            known[opened.signer] = said
            while len(known) > _MAX_REFUTED:
                del known[next(iter(known))]
            self._forget(repo, found.commit, opened.signer)
            try:
                with self._in(self._root) as directory:
                    disk.write_file(_REFUTED, msgspec.json.encode(known), dir_fd=directory)
            except OSError as exc:  # the map is gone all the same
                log.warning("map.not_noted signer=%s reason=%s", opened.signer, exc.strerror)

    def refuted(self) -> dict[str, Refuted]:
        """Signers that are not believed, and why."""
        try:
            with self._in(self._root) as directory:
                data = disk.read_file(_REFUTED, dir_fd=directory, limit_bytes=8 << 20)
            known = msgspec.json.decode(data, type=dict[str, Refuted])
        except (OSError, NodeError, msgspec.MsgspecError):
            return {}
        oldest = self.now_s() - DEMOTED_S
        return {signer: said for signer, said in known.items() if said.at_s >= oldest}

    def note_published(self, kept: KeptMap) -> None:
        """Its owner agreed to show it to everybody, and it was."""
        found = kept.opened.map
        with self._in(self._folder(HubRepo(found.repo, found.repo_type), found.commit)) as directory:
            disk.write_file(_PUBLISHED, str(kept.opened.envelope_cid).encode(), dir_fd=directory)

    def published(self, kept: KeptMap) -> bool:
        """Whether that very map was published from here."""
        found = kept.opened.map
        try:
            with self._in(self._folder(HubRepo(found.repo, found.repo_type), found.commit), make=False) as directory:
                said = disk.read_file(_PUBLISHED, dir_fd=directory, limit_bytes=256)
        except OSError:
            return False
        return said == str(kept.opened.envelope_cid).encode()

    # private

    def _folder(self, repo: HubRepo, commit: str) -> Path:
        return self._root / hashlib.sha256(f"{repo}@{commit}".encode()).hexdigest()[:32]

    def _signers(self, repo: HubRepo, commit: str) -> list[str]:
        return sorted(path.stem for path in self._folder(repo, commit).glob("*.map"))

    def _read(self, repo: HubRepo, commit: str, signer: str, *, now: int | None) -> KeptMap | None:
        kept = self._opened(self._folder(repo, commit) / f"{signer}.map", now=now)
        if kept is None or kept.opened.signer != signer:
            return None
        found = kept.opened.map
        return kept if (found.repo, found.repo_type, found.commit) == (repo.id, repo.kind, commit) else None

    def _opened(self, path: Path, *, now: int | None) -> KeptMap | None:
        try:
            with self._in(path.parent, make=False) as directory:
                data = disk.read_file(path.name, dir_fd=directory, limit_bytes=MAX_PARCEL_BYTES)
            parcel = msgspec.json.decode(data, type=Parcel)
            return KeptMap(parcel.open(now=now), parcel)
        except FileNotFoundError:
            return None
        except (OSError, NodeError, msgspec.MsgspecError) as exc:
            log.warning("map.unusable file=%s reason=%s", path.name, ascii(str(exc)[:200]))
            return None

    def _write(self, kept: KeptMap) -> None:
        found = kept.opened.map
        folder = self._folder(HubRepo(found.repo, found.repo_type), found.commit)
        data = msgspec.json.encode(kept.parcel)
        if len(data) > MAX_PARCEL_BYTES:
            raise BadContent(f"a map of {len(data)} bytes is not kept", code="bad_record")
        is_new = not folder.is_dir()
        with disk.storing("cannot keep a map"), self._in(folder) as directory:
            disk.write_file(f"{kept.opened.signer}.map", data, dir_fd=directory)
        if is_new:
            _drop_oldest((path for path in self._root.iterdir() if path.is_dir()), MAX_COMMITS)
        _drop_oldest((p for p in folder.glob("*.map") if p.stem != self._key.peer_id), MAX_SIGNERS)

    def _forget(self, repo: HubRepo, commit: str, signer: str) -> None:
        (self._folder(repo, commit) / f"{signer}.map").unlink(missing_ok=True)

    @contextmanager
    def _in(self, folder: Path, *, make: bool = True) -> Iterator[int]:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = disk.open_directory(folder)
        try:
            yield directory
        finally:
            os.close(directory)


def _drop_oldest(paths: Iterable[Path], most: int) -> None:
    """Beyond most, what was written longest ago."""
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime)[:-most]:
        if path.is_dir():
            for left in path.iterdir():
                left.unlink(missing_ok=True)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
