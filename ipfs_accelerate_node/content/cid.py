"""CIDs under the hash policy: what is parsed here may be trusted to name bytes; everything else is `InvalidCid`."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from ipfs_accelerate_node.errors import InvalidCid

RAW, DAG_PB, DAG_CBOR = 0x55, 0x70, 0x71
SHA2_256, IDENTITY = 0x12, 0x00


@dataclass(frozen=True, slots=True)
class Cid:
    """version (0 or 1), codec, multihash (code, length, digest as on the wire)."""

    version: int
    codec: int
    multihash: bytes

    @classmethod
    def parse(cls, text: str) -> Cid:
        if not text.startswith("b"):
            raise InvalidCid("not a CID")
        return cls.decode(base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8)))

    @classmethod
    def decode(cls, data: bytes) -> Cid:
        return cls(1, data[1], data[2:])

    @classmethod
    def of(cls, data: bytes, codec: int = RAW, hash_code: int = SHA2_256) -> Cid:
        """The CIDv1 of a block."""
        return cls(1, codec, bytes((SHA2_256, 32)) + hashlib.sha256(data).digest())

    def __bytes__(self) -> bytes:
        return bytes((1, self.codec)) + self.multihash

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().lower().rstrip("=")
