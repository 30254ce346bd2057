"""Maps of commits: made here of what was checked here, and read as what a peer claims.

Our own names a CID only for a file that is in the store, public, under the oid that the Hub itself named; its root is
computed of those files anew. So what other maps said, and what was once noted, has no part in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.content.build import CHUNK_BYTES, BuiltFile, tree_dag
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dag_bytes import dag_bytes
from ipfs_accelerate_node.errors import NodeError
from ipfs_accelerate_node.fetch.hub_map_shelf import KeptMap, MapShelf
from ipfs_accelerate_node.fetch.hub_nearby import oid_of
from ipfs_accelerate_node.fetch.hub_shelf import KeptCommit
from ipfs_accelerate_node.records.envelope import LIFETIME_S
from ipfs_accelerate_node.records.hub_map import HubMap, MappedFile, Word, renewed
from ipfs_accelerate_node.sources.hub_answers import HubFile, TreeEntry
from ipfs_accelerate_node.sources.hub_names import is_hidden
from ipfs_accelerate_node.sources.hub_plain import large_entry
from ipfs_accelerate_node.store import Store, StoredFile
from ipfs_accelerate_node.store.single import in_profile

log = logging.getLogger(__name__)

RENEW_S = LIFETIME_S // 3  # a map that ends sooner is signed anew when it is asked for
_WORDS = ("author", "createdAt", "lastModified", "library_name", "mask_token", "pipeline_tag", "tags")
_MAX_WORD, _MAX_TAGS = 200, 200


class MapMaker:
    """Blocks. maps: where ours are kept."""

    def __init__(self, store: Store, maps: MapShelf) -> None:
        self.maps = maps
        self._store = store

    def own(self, kept: KeptCommit, *, thorough: bool = False) -> KeptMap | None:
        """Our map of that commit, made or renewed if need be; None where not all of it is here and public, the Hub
        said that it is not for all, or never said which files it has. thorough: looks for each file, also where none
        was noted. Raises StorageError."""
        if not kept.confirmed or (kept.restricted and not self._is_shared(kept)):
            return None
        repo, commit = kept.of_repo, kept.commit
        here = self.maps.own(repo, commit)
        now = int(self.maps.now_s())
        if here is not None and here.opened.map.root is not None and _listed(here) == _asked(kept):
            found = here.opened.map
            if found.expires - now > RENEW_S:
                return here
            return self.maps.keep_own(lambda created, seq: renewed(found, created=created, seq=seq))
        if not thorough and any(file.path not in kept.cids for file in kept.shown()):
            return here
        return self._made(kept) or here

    def _is_shared(self, kept: KeptCommit) -> bool:
        """Whether its user said that strangers may have it."""
        of_commit = (str(kept.of_repo), kept.commit)
        shared = [m for m in self._store.models() if m.public and m.provenance.shared_at is not None]
        return any(
            (m.provenance.hub_repo, m.provenance.hub_commit) == of_commit or str(m.root) == kept.root for m in shared
        )

    def note(self, kept: KeptCommit) -> None:
        """All of a commit may be here now: its map is made. A failure is no failure of the fetch."""
        try:
            if (made := self.own(kept)) is not None:
                log.info("map.made repo=%s commit=%s root=%s", kept.of_repo, kept.commit, made.opened.map.root)
        except NodeError as exc:
            log.warning("map.not_made repo=%s commit=%s reason=%s", kept.of_repo, kept.commit, exc)

    def _made(self, kept: KeptCommit) -> KeptMap | None:
        """Only the whole commit: what is here in part is nobody's map."""
        built = checked_files(self._store, kept, public_only=True)
        shown = [file.path for file in kept.shown()]
        if not shown or any(path not in built for path in shown):
            return None
        root = tree_dag({path: built[path] for path in shown}).plan.root
        files = tuple(
            MappedFile(entry.path, entry.size, entry.file.oid, built[entry.path].cid if entry.path in built else None)
            for entry in sorted(kept.entries, key=lambda entry: entry.path)
            if not entry.folder
        )

        def made(created: int, seq: int) -> HubMap:
            about = words(kept.said)
            expires = created + LIFETIME_S
            return HubMap(kept.kind, kept.repo, kept.commit, root, files, created, expires, seq, about)

        return self.maps.keep_own(made)


def checked_files(store: Store, kept: KeptCommit, *, public_only: bool) -> dict[str, BuiltFile]:
    """The files of a commit that are here under their oids, as the import profile builds them, by path. Blocks."""
    built: dict[str, BuiltFile] = {}
    for entry in kept.entries:
        noted = kept.cids.get(entry.path)
        if not entry.folder and (
            stored := stored_as(store, entry.file, None if noted is None else Cid.parse(noted), public_only=public_only)
        ):
            built[entry.path] = in_profile(store, stored.cid)
    return built


def stored_as(store: Store, file: HubFile, noted: Cid | None, *, public_only: bool = False) -> StoredFile | None:
    """The stored file that has this oid. noted: looked at too, where the oid is none that is listed. Blocks."""
    stored = store.of_oid(bytes.fromhex(file.oid), file.size, public_only=public_only)
    if stored is None and noted is not None:
        other = store.file(noted, public_only=public_only)
        if other is not None and other.size == file.size and oid_of(store, other, file) == file.oid:
            return other
    return stored


def claimed_commit(kept: KeptMap) -> KeptCommit:
    """What a peer's map says, in the words of what the Hub says. Without hidden files: no root has them, so no peer
    gives them."""
    found = kept.opened.map
    files = [file for file in found.files if not is_hidden(file.path)]
    return KeptCommit(
        found.repo_type,
        found.repo,
        found.commit,
        restricted=False,
        said=dict(found.about),
        entries=tuple(_entry(file) for file in files),
        source=f"peer:{kept.opened.signer}",
        claimed=True,
        root=None if found.root is None else str(found.root),
        cids={file.path: str(file.cid) for file in files if file.cid is not None},
    )


def words(said: Mapping[str, object]) -> dict[str, Word]:
    """Of what the Hub says of a repository, what helps who loads it, and its licence (a tag)."""
    found: dict[str, Word] = {}
    for name in _WORDS:
        value = said.get(name)
        if isinstance(value, str) and len(value) <= _MAX_WORD:
            found[name] = value
        elif isinstance(value, list):
            found[name] = [word for word in value if isinstance(word, str) and len(word) <= _MAX_WORD][:_MAX_TAGS]
    return found


def _asked(kept: KeptCommit) -> set[tuple[str, int, str]]:
    return {(entry.path, entry.size, entry.file.oid) for entry in kept.entries if not entry.folder}


def _listed(kept: KeptMap) -> set[tuple[str, int, str]]:
    return {(file.path, file.size, file.oid) for file in kept.opened.map.files}


def _entry(file: MappedFile) -> TreeEntry:
    if len(file.oid) == 40:
        return TreeEntry(file.path, file.size, file.oid)
    return large_entry(file.path, file.oid, file.size)


def same_cid(one: Cid | None, other: Cid | None) -> bool:
    return one is not None and other is not None and one.canonical == other.canonical


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a map is wrong. path: "" for the map as a whole."""

    path: str
    reason: str


def fault(found: HubMap, kept: KeptCommit) -> Fault | None:
    """The first thing that a map says and what the Hub said does not allow, or that contradicts itself: the commit, the
    list of files, a CID that no file of that size has, the root. No byte of a file is needed to see it."""
    if (found.repo, found.repo_type, found.commit) != (kept.repo, kept.kind, kept.commit):
        return Fault("", f"it is of {found.repo}@{found.commit}, not of {kept.repo}@{kept.commit}")
    hub = {entry.path: entry.file for entry in kept.entries if not entry.folder}
    mapped = {file.path: file for file in found.files}
    for path in sorted(hub.keys() | mapped.keys()):
        if path not in mapped:
            return Fault(path, "the commit has this file, the map has not")
        if path not in hub:
            return Fault(path, "the map has this file, the commit has not")
        if mapped[path].size != hub[path].size:
            return Fault(path, f"it has {hub[path].size} bytes, not {mapped[path].size}")
        if mapped[path].oid != hub[path].oid:
            return Fault(path, f"its oid is {hub[path].oid}, not {mapped[path].oid}")
    return own_fault(found)


def own_fault(found: HubMap) -> Fault | None:
    """The same without the Hub: what contradicts itself."""
    for file in found.files:
        codec = RAW if file.size <= CHUNK_BYTES else DAG_PB
        if file.cid is not None and (file.cid.codec, file.cid.hash_name) != (codec, "sha2-256"):
            return Fault(file.path, f"{file.cid} is no CID that a file of {file.size} bytes has in {found.profile}")
    shown = [file for file in found.files if not is_hidden(file.path)]
    if found.root is None or not shown:
        return None if found.root is None else Fault("", "it has a root, and no file of it")
    if found.root == (root := mapped_root(shown)):
        return None
    hidden = [file for file in found.files if is_hidden(file.path) and file.cid is not None]
    for file in hidden:
        if found.root in (mapped_root([*shown, file]), mapped_root([*shown, *hidden])):
            return Fault(file.path, "this hidden file is in its root")
    return Fault("", f"its files make the root {root}, not {found.root}")


def mapped_root(files: Iterable[MappedFile]) -> Cid:
    """The root that files make, of their CIDs and sizes alone."""
    built = {
        file.path: BuiltFile(file.cid, file.size, (), (), dag_bytes(file.size))
        for file in files
        if file.cid is not None
    }
    return tree_dag(built).plan.root
