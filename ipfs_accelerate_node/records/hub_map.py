"""The map record: under which CIDs the files of one commit of a Hub repository are, and which root they make.

Two nodes that have the same commit make the same list, so a map is something to recompute, not to believe. A map that
does not fit into one block is a record that links blocks of files: what the links name is signed with them. Verified in
the order of `records.envelope`, its schema (and the linked blocks) before the times, the counter last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ipfs_accelerate_node.content.build import PROFILE_NAME
from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.errors import BadContent, UnsafeContent
from ipfs_accelerate_node.records.canonical import Value, bad, decode, encode
from ipfs_accelerate_node.records.envelope import (
    LIFETIME_S,
    MAP_PREFIX,
    Opened,
    SealedBlocks,
    check_time,
    envelope_record,
    open_envelope,
    seal,
)
from ipfs_accelerate_node.records.key import NodeKey

VERSION = 1
KIND = "hub-map"
MAX_BLOCK_BYTES = 2 << 20  # what Kubo and bitswap carry
MAX_FILES = 10_000
MAX_SHARDS = 64
MAX_ABOUT_BYTES = 64 << 10
_SHARD_BYTES = 1 << 20  # of files in one linked block, at most
_MAX_PATH_BYTES = 4096
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9._/-]{1,96}")
_FIELDS = {"v", "kind", "repo_type", "repo", "commit", "profile", "root", "about", "created", "expires", "seq"}

RepoType = Literal["model", "dataset"]
Word = str | int | list[str]


@dataclass(frozen=True, slots=True)
class MappedFile:
    """oid: what the Hub calls the content by, in hex: sha256, or git's sha1 of a file outside large file storage. cid:
    None while it is not known."""

    path: str
    size: int
    oid: str
    cid: Cid | None


@dataclass(frozen=True, slots=True)
class HubMap:
    """files: of the whole commit, by path; hidden ones are listed, and are not of the root. root: None while a CID is
    lacking. about: what the Hub says of the repository, in words that help who loads it. created, expires: seconds
    since 1970. seq: grows with each map that its signer makes of the same commit."""

    repo_type: RepoType
    repo: str
    commit: str
    root: Cid | None
    files: tuple[MappedFile, ...]
    created: int
    expires: int
    seq: int
    about: Mapping[str, Word] = field(default_factory=dict)
    profile: str = PROFILE_NAME

    @property
    def known(self) -> int:
        """How many files have a CID."""
        return sum(file.cid is not None for file in self.files)


@dataclass(frozen=True, slots=True)
class OpenedMap:
    """A map whose signature holds. signer: PeerID of the key that made it."""

    map: HubMap
    signer: str
    record_cid: Cid
    envelope_cid: Cid


def seal_map(made: HubMap, key: NodeKey) -> SealedBlocks:
    """Signs it; the same map and key give the same blocks. Raises BadContent(bad_record) for what no reader takes."""
    files = [_written(file) for file in made.files]
    record: dict[str, Value] = {
        "v": VERSION,
        "kind": KIND,
        "repo_type": made.repo_type,
        "repo": made.repo,
        "commit": made.commit,
        "profile": made.profile,
        "root": made.root,
        "about": {name: list(said) if isinstance(said, list) else said for name, said in made.about.items()},
        "created": made.created,
        "expires": made.expires,
        "seq": made.seq,
    }
    shards: tuple[tuple[Cid, bytes], ...] = ()
    parts = list(_parts(files))
    if len(parts) > 1:
        shards = tuple((Cid.of(block, DAG_CBOR), block) for block in parts)
        record["shards"] = [cid for cid, _ in shards]
    else:
        record["files"] = [*files]
    _read(record, dict(shards))
    return SealedBlocks(seal(record, key, MAP_PREFIX, max_bytes=MAX_BLOCK_BYTES), shards)


def renewed(made: HubMap, *, created: int, seq: int) -> HubMap:
    """The same said again, good for a whole lifetime from created."""
    return HubMap(
        made.repo_type, made.repo, made.commit, made.root, made.files, created, created + LIFETIME_S, seq, made.about
    )


def map_links(envelope: bytes, record: bytes | None = None) -> list[Cid]:
    """What has to be there beside these blocks for `open_map`; nothing is verified. Raises BadContent(bad_record)."""
    if record is None:
        return [envelope_record(envelope)]
    said = decode(record, max_bytes=MAX_BLOCK_BYTES)
    shards = said.get("shards", []) if isinstance(said, dict) else []
    return _links(shards)


def open_map(
    envelope: bytes,
    blocks: Mapping[Cid, bytes],
    *,
    now: int | None,
    newest: tuple[int, Cid] | None = None,
    key: bytes | None = None,
) -> OpenedMap:
    """The map, once everything about it is verified.

    blocks: by CID, record and shards. now: seconds since 1970; None leaves the times unchecked (one's own archive).
    newest: counter and record of this signer's last map of the same commit, as far as one is known.
    Raises BadContent (bad_record, bad_signature, record_expired, record_from_future, record_stale) and IntegrityError
    for a block that is not what its link says.
    """
    named = envelope_record(envelope)
    for block in (envelope, *blocks.values()):
        if len(block) > MAX_BLOCK_BYTES:
            raise bad(f"a block of {len(block)} bytes, at most {MAX_BLOCK_BYTES} are allowed")
    if named not in blocks:
        raise bad("the record is not there")
    opened = open_envelope(envelope, blocks[named], MAP_PREFIX, key=key, max_bytes=MAX_BLOCK_BYTES)
    made = _read(opened.record, blocks)
    if now is not None:
        check_time(opened.record, now)
    if newest is not None and (made.seq, opened.record_cid) != newest and made.seq <= newest[0]:
        raise BadContent(f"the map is older than number {newest[0]} of the same signer", code="record_stale")
    return _opened(opened, made)


def _opened(opened: Opened, made: HubMap) -> OpenedMap:
    return OpenedMap(made, opened.signer, opened.record_cid, opened.envelope_cid)


def _written(file: MappedFile) -> Value:
    try:
        oid = bytes.fromhex(file.oid)
    except ValueError as exc:
        raise bad("an oid that is not hex") from exc
    return {"path": file.path, "size": file.size, "oid": oid, "cid": file.cid}


def _parts(files: Sequence[Value]) -> Iterable[bytes]:
    """One block of files after another, cut where the next would pass _SHARD_BYTES."""
    part: list[Value] = []
    size = 0
    for file in files:
        file_bytes = len(encode(file))
        if part and size + file_bytes > _SHARD_BYTES:
            yield encode(part, max_bytes=MAX_BLOCK_BYTES)
            part, size = [], 0
        part.append(file)
        size += file_bytes
    yield encode(part, max_bytes=MAX_BLOCK_BYTES)


def _read(record: Mapping[str, Value], blocks: Mapping[Cid, bytes]) -> HubMap:
    """The schema, strictly: a field too many is a refusal too. Raises BadContent(bad_record), IntegrityError."""
    listed = {"files"} if "files" in record else {"shards"}
    if set(record) != _FIELDS | listed:
        raise bad("it has not the fields of a map")
    if type(record["v"]) is not int or (record["v"], record["kind"]) != (VERSION, KIND):
        raise bad("it is no map of this version")
    repo_type, repo, commit = record["repo_type"], record["repo"], record["commit"]
    if repo_type not in ("model", "dataset"):
        raise bad("it has no kind of repository")
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        raise bad("it names no repository")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise bad("it names no commit")
    root = record["root"]
    if record["profile"] != PROFILE_NAME or not (root is None or _is_canonical(root)):
        raise bad("its root is none, or of another profile")
    files = tuple(_file(said) for said in _listed(record, blocks))
    _check_files(files, root)
    created, expires, seq = (value for value in (record[name] for name in ("created", "expires", "seq")))
    assert isinstance(created, int) and isinstance(expires, int) and isinstance(seq, int)  # noqa: PT018 checked before
    return HubMap(
        "model" if repo_type == "model" else "dataset",
        repo,
        commit,
        root if isinstance(root, Cid) else None,
        files,
        created,
        expires,
        seq,
        _about(record["about"]),
    )


def _listed(record: Mapping[str, Value], blocks: Mapping[Cid, bytes]) -> list[Value]:
    if "files" in record:
        return _list(record["files"])
    found: list[Value] = []
    links = _links(record["shards"])
    if not 2 <= len(links) <= MAX_SHARDS:
        raise bad(f"it links {len(links)} blocks of files")
    for cid in links:
        if cid not in blocks:
            raise bad("a linked block is not there")
        cid.check(blocks[cid], "map")
        found += _list(decode(blocks[cid], max_bytes=MAX_BLOCK_BYTES))
        if len(found) > MAX_FILES:
            break
    return found


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise bad("its files are no list")
    return value


def _links(value: Value) -> list[Cid]:
    found = [cid for cid in _list(value) if isinstance(cid, Cid) and cid.codec == DAG_CBOR]
    if len(found) != len(_list(value)):
        raise bad("it links what are no blocks of files")
    return found


def _file(said: Value) -> MappedFile:
    if not isinstance(said, dict) or set(said) != {"path", "size", "oid", "cid"}:
        raise bad("a file has not the fields of one")
    path, size, oid, cid = (said[name] for name in ("path", "size", "oid", "cid"))
    if not isinstance(path, str) or len(path.encode()) > _MAX_PATH_BYTES:
        raise bad("a file has no path")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise bad("a file has no size")
    if not isinstance(oid, bytes) or len(oid) not in (20, 32):
        raise bad("a file has no oid")
    if not (cid is None or _is_canonical(cid)):
        raise bad("a file has no usable CID")
    return MappedFile(path, size, oid.hex(), cid if isinstance(cid, Cid) else None)


def _is_canonical(value: Value) -> bool:
    return isinstance(value, Cid) and value.canonical == value


def _check_files(files: Sequence[MappedFile], root: Value) -> None:
    if len(files) > MAX_FILES:
        raise bad(f"more than {MAX_FILES} files")
    paths = [file.path for file in files]
    if paths != sorted(paths):
        raise bad("its files are not by path")
    try:
        check_tree(paths)
    except UnsafeContent as exc:
        raise bad(str(exc)) from exc
    if root is not None and any(file.cid is None for file in files if not _is_hidden(file.path)):
        raise bad("it has a root, and a file of it without a CID")


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _about(value: Value) -> dict[str, Word]:
    if not isinstance(value, dict) or len(encode(value)) > MAX_ABOUT_BYTES:
        raise bad("what it says of the repository is no map, or too much")
    found: dict[str, Word] = {}
    for name, said in value.items():
        if isinstance(said, list):
            words = [word for word in said if isinstance(word, str)]
            if len(words) != len(said):
                raise bad("what it says of the repository is not plain")
            found[name] = words
        elif isinstance(said, str | int):
            found[name] = said
        else:
            raise bad("what it says of the repository is not plain")
    return found
