"""What a DAG says about files: which leaves make up which file, at which offset."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent


@dataclass(frozen=True, slots=True)
class Leaf:
    """One run of file bytes that a single block holds.

    offset, length: bytes within the file. The block is ``prefix + payload + suffix``; both are empty for a raw leaf and
    re-wrap the payload of a dag-pb leaf exactly as it was (also of an inner node that carries data, whose links are
    then part of prefix or suffix).
    """

    cid: Cid
    offset: int
    length: int
    prefix: bytes = b""
    suffix: bytes = b""

    def wrap(self, payload: bytes) -> bytes:
        """The block of this leaf, given its payload."""
        return self.prefix + payload + self.suffix if self.prefix or self.suffix else payload

    def unwrap(self, block: bytes) -> bytes:
        """The payload of this leaf's block, which was checked against the CID. Raises BadContent (code bad_dag) where
        the block is not of the length that the DAG declares: its bytes must never be written."""
        start, end = len(self.prefix), len(block) - len(self.suffix)
        if end - start != self.length or not block.startswith(self.prefix) or not block.endswith(self.suffix):
            raise BadContent(
                f"block {self.cid} holds {len(block)} bytes, not {self.length} of file data as its parent says",
                cid=str(self.cid),
            )
        return block[start:end] if self.prefix or self.suffix else block


@dataclass(frozen=True, slots=True)
class FilePlan:
    """path: relative, "/"-separated, safe on every file system ("" when the root itself is a file).
    cid: the file's own root. leaves: in file order, without gaps, together size bytes (none for an empty file whose
    block has no data)."""

    path: str
    cid: Cid
    size: int
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """root: of a directory, or of a single file (``files == (FilePlan("", root, …),)``). files: by path. directories:
    every directory below the root, parents first, also empty ones."""

    root: Cid
    files: tuple[FilePlan, ...]
    directories: tuple[str, ...] = ()
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", sum(f.size for f in self.files))
