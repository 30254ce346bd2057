"""The two files beside a model from which its index rows can be made again: its label and its plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import InvalidCid
from ipfs_accelerate_node.store.types import Provenance

LABEL_LIMIT_BYTES = 1 << 20
PLAN_LIMIT_BYTES = 1 << 32
LATER = b"?"  # what a stand-in for a sha256 begins with; a version 1 CID follows
_PLAN_MAGIC = b"ian-plan 1\n"


class BadSidecar(Exception):
    """The file is not what this program wrote."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a person may change about a model, and where it came from."""

    root: Cid
    names: tuple[str, ...]
    pinned: bool
    public: bool
    provenance: Provenance
    last_used: int = 0
    announce: bool = False


@dataclass(frozen=True, slots=True)
class Hashes:
    """Of a whole file. sha256: 32 bytes; or, of a file that was not hashed as a whole yet, a longer stand-in that no
    other file has, so that equal ones mean equal bytes either way. git_sha1: empty for a file too large for git."""

    sha256: bytes
    git_sha1: bytes

    @classmethod
    def later(cls, file: Cid) -> Hashes:
        """Of a file whose hash as a whole is still to be computed."""
        return cls(LATER + bytes(file.canonical), b"")

    @property
    def known(self) -> bool:
        return is_known(self.sha256)


_ABSENT = Hashes(b"", b"")


def is_known(sha256: bytes) -> bool:
    """Whether it is one, and no stand-in."""
    return len(sha256) == 32


class _LabelFile(msgspec.Struct, forbid_unknown_fields=False):
    root: str
    names: tuple[str, ...]
    pinned: bool
    public: bool
    provenance: Provenance
    last_used: int = 0
    announce: bool = False
    version: int = 1


class _FileRecord(msgspec.Struct, array_like=True):
    """sha256 and git_sha1 are empty for a file that is not here."""

    path: str
    cid: bytes
    size: int
    sha256: bytes
    git_sha1: bytes
    leaves: list[tuple[bytes, int, bytes, bytes]]  # cid, length, prefix, suffix; offsets follow from the lengths


class _PlanFile(msgspec.Struct, array_like=True):
    root: bytes
    files: list[_FileRecord]
    directories: list[str]
    nodes: list[tuple[bytes, bytes]]


def label_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def parse_provenance(text: str) -> Provenance:
    return msgspec.json.decode(text, type=Provenance)


def encode_label(label: Label) -> bytes:
    """JSON, for people to read too."""
    file = _LabelFile(
        str(label.root.canonical),
        label.names,
        label.pinned,
        label.public,
        label.provenance,
        label.last_used,
        label.announce,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def decode_label(data: bytes) -> Label:
    """Raises BadSidecar."""
    try:
        file = msgspec.json.decode(data, type=_LabelFile)
        root = Cid.parse(file.root)
    except (msgspec.MsgspecError, InvalidCid, UnicodeError) as exc:
        raise BadSidecar(str(exc)) from exc
    return Label(root, file.names, file.pinned, file.public, file.provenance, file.last_used, file.announce)


def encode_plan(plan: ModelPlan, hashes: Mapping[Cid, Hashes], nodes: Iterable[tuple[Cid, bytes]]) -> bytes:
    """hashes: by canonical file CID, of the files that are here. The sha256 of all that follows stands in the head."""
    files = [
        _FileRecord(
            file.path,
            bytes(file.cid),
            file.size,
            (found := hashes.get(file.cid.canonical, _ABSENT)).sha256,
            found.git_sha1,
            [(bytes(leaf.cid), leaf.length, leaf.prefix, leaf.suffix) for leaf in file.leaves],
        )
        for file in plan.files
    ]
    record = _PlanFile(bytes(plan.root), files, list(plan.directories), [(bytes(c), b) for c, b in nodes])
    body = msgspec.msgpack.encode(record)
    return _PLAN_MAGIC + hashlib.sha256(body).digest() + body


@dataclass(frozen=True, slots=True)
class PlanFile:
    """plan: every file, also those that are not here. hashes: by canonical CID, of those that are."""

    plan: ModelPlan
    hashes: dict[Cid, Hashes]
    nodes: list[tuple[Cid, bytes]]

    @property
    def here(self) -> list[FilePlan]:
        return [file for file in self.plan.files if file.cid.canonical in self.hashes]

    @property
    def absent(self) -> list[FilePlan]:
        return [file for file in self.plan.files if file.cid.canonical not in self.hashes]


def decode_plan(data: bytes) -> PlanFile:
    """Raises BadSidecar."""
    start = len(_PLAN_MAGIC) + 32
    body = data[start:]
    if not data.startswith(_PLAN_MAGIC) or hashlib.sha256(body).digest() != data[len(_PLAN_MAGIC) : start]:
        raise BadSidecar("the plan's checksum is wrong")
    try:
        record = msgspec.msgpack.decode(body, type=_PlanFile)
        files = tuple(_file_plan(file) for file in record.files)
        hashes = {
            plan.cid.canonical: Hashes(file.sha256, file.git_sha1)
            for plan, file in zip(files, record.files, strict=True)
            if file.sha256
        }
        plan = ModelPlan(Cid.decode(record.root), files, tuple(record.directories))
        return PlanFile(plan, hashes, [(Cid.decode(cid), block) for cid, block in record.nodes])
    except (msgspec.MsgspecError, InvalidCid) as exc:
        raise BadSidecar(str(exc)) from exc


def _file_plan(file: _FileRecord) -> FilePlan:
    leaves, offset = [], 0
    for cid, length, prefix, suffix in file.leaves:
        leaves.append(Leaf(Cid.decode(cid), offset, length, prefix, suffix))
        offset += length
    return FilePlan(file.path, Cid.decode(file.cid), file.size, tuple(leaves))
