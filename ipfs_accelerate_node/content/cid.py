"""CIDs under the hash policy: what parses here names bytes that can be checked; everything else is `InvalidCid`.

Policy: sha2-256, sha2-512, sha3-256, sha3-512, blake2b-256, blake2b-512 and blake2s-256 with exactly their own digest
length, identity up to 128 bytes; codecs raw, dag-pb and (records only, which the reader of a DAG decides) dag-cbor.
Varints in shortest form, no trailing bytes, at most 256 letters. That gives every byte string one meaning, so
`Cid.canonical` (version 1) is the key of caches and of the API.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from ipfs_accelerate_node.content import multibase, varint
from ipfs_accelerate_node.errors import IntegrityError, InvalidCid

RAW, DAG_PB, DAG_CBOR = 0x55, 0x70, 0x71
LIBP2P_KEY = 0x72
IDENTITY, SHA2_256, SHA2_512, SHA3_512, SHA3_256 = 0x00, 0x12, 0x13, 0x14, 0x16
BLAKE2B_256, BLAKE2B_512, BLAKE2S_256 = 0xB220, 0xB240, 0xB260

MAX_TEXT = 256  # letters; the longest admissible CID (sha2-512, base16) has 140, a 128-byte identity in base32 212
MAX_IDENTITY_BYTES = 128

Buffer = bytes | bytearray | memoryview
_CODECS = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}


@dataclass(frozen=True, slots=True)
class _Hash:
    name: str
    size: int
    digest: Callable[[Buffer], bytes]


_HASHES = {
    SHA2_256: _Hash("sha2-256", 32, lambda data: hashlib.sha256(data).digest()),
    SHA2_512: _Hash("sha2-512", 64, lambda data: hashlib.sha512(data).digest()),
    SHA3_512: _Hash("sha3-512", 64, lambda data: hashlib.sha3_512(data).digest()),
    SHA3_256: _Hash("sha3-256", 32, lambda data: hashlib.sha3_256(data).digest()),
    BLAKE2B_256: _Hash("blake2b-256", 32, lambda data: hashlib.blake2b(data, digest_size=32).digest()),
    BLAKE2B_512: _Hash("blake2b-512", 64, lambda data: hashlib.blake2b(data).digest()),
    BLAKE2S_256: _Hash("blake2s-256", 32, lambda data: hashlib.blake2s(data).digest()),
    IDENTITY: _Hash("identity", MAX_IDENTITY_BYTES, bytes),
}


@dataclass(frozen=True, slots=True)
class Cid:
    """version (0 or 1), codec, multihash (code, length, digest as on the wire).

    Equality is of the spelling's version too; compare and key by `canonical`.
    """

    version: int
    codec: int
    multihash: bytes

    @classmethod
    def parse(cls, text: str) -> Cid:
        """A CID as a person or a URL spells it: base58 version 0, or version 1 in any multibase that Kubo reads.

        Nothing is stripped. Raises InvalidCid (code invalid_cid, digest_too_small, digest_too_large, hash_not_allowed,
        unsupported_codec); the message echoes at most 80 escaped letters.
        """
        if not isinstance(text, str) or not text:
            raise InvalidCid("a CID is needed, got nothing")
        if len(text) > MAX_TEXT:
            raise InvalidCid(f"{shown(text)} is longer than the {MAX_TEXT} letters of any CID")
        try:
            data, version0 = _text_bytes(text)
            cid = cls.decode(data)
        except multibase.BadMultibase as exc:
            raise InvalidCid(f"{shown(text)} is not a CID: {exc}") from exc
        except InvalidCid as exc:
            raise InvalidCid(f"{shown(text)}: {exc}", code=exc.code) from exc
        if version0 and cid.version != 0:
            raise InvalidCid(f"{shown(text)} is not a CID: a version 0 CID is a sha2-256 in base58")
        return cid

    @classmethod
    def decode(cls, data: Buffer) -> Cid:
        """Exactly these bytes as a binary CID. Raises InvalidCid, also for trailing bytes."""
        cid, end = cls.decode_prefix(data)
        if end != len(data):
            raise InvalidCid(f"{len(data) - end} bytes after the end of the CID")
        return cid

    @classmethod
    def decode_prefix(cls, data: Buffer, offset: int = 0) -> tuple[Cid, int]:
        """The binary CID that starts at offset, and the offset after it. Raises InvalidCid."""
        if bytes(data[offset : offset + 2]) == b"\x12\x20":
            if len(data) < offset + 34:
                raise InvalidCid("the CID ends early")
            return cls(0, DAG_PB, bytes(data[offset : offset + 34])), offset + 34
        try:
            version, at = varint.read(data, offset)
            if version != 1:
                raise InvalidCid(f"CID version {version} does not exist")
            codec, start = varint.read(data, at)
            code, at = varint.read(data, start)
            length, at = varint.read(data, at)
        except varint.BadVarint as exc:
            raise InvalidCid(f"not a binary CID: {exc}") from exc
        end = at + length
        if end > len(data):
            raise InvalidCid(f"the digest should have {length} bytes, {len(data) - at} are there")
        _check_policy(codec, code, length)
        return cls(1, codec, bytes(data[start:end])), end

    @classmethod
    def of(cls, data: Buffer, codec: int = RAW, hash_code: int = SHA2_256) -> Cid:
        """The CIDv1 of a block. Raises InvalidCid if the policy does not admit the hash (identity: the length)."""
        digest = _HASHES[hash_code].digest(data) if hash_code in _HASHES else b""
        _check_policy(codec, hash_code, len(digest))
        return cls(1, codec, varint.write(hash_code) + varint.write(len(digest)) + digest)

    @property
    def canonical(self) -> Cid:
        """Version 1 of the same codec and multihash: equal for all spellings of one CID."""
        return self if self.version == 1 else Cid(1, self.codec, self.multihash)

    @property
    def hash_code(self) -> int:
        return varint.read(self.multihash)[0]

    @property
    def hash_name(self) -> str:
        """Name in the multicodec table, such as ``sha2-256``."""
        return _HASHES[self.hash_code].name

    @property
    def codec_name(self) -> str:
        return _CODECS[self.codec]

    @property
    def digest(self) -> bytes:
        _, at = varint.read(self.multihash)
        _, at = varint.read(self.multihash, at)
        return self.multihash[at:]

    @property
    def inline(self) -> bytes | None:
        """The block itself where the hash is identity, else None."""
        return self.digest if self.multihash[0] == IDENTITY else None

    @property
    def known_block(self) -> bytes | None:
        """The block where the CID alone tells it: an identity's payload, or the empty block (bitswap carries none)."""
        return b"" if self.multihash in _OF_NOTHING else self.inline

    def matches(self, data: Buffer) -> bool:
        """Whether these are the bytes this CID names. Hashes them: off the event loop for more than a few KiB."""
        return _HASHES[self.hash_code].digest(data) == self.digest

    def of_same_hash(self, data: Buffer) -> Cid:
        """The CID these bytes really have, under this CID's version, codec and hash."""
        code = self.hash_code
        digest = _HASHES[code].digest(data)
        return Cid(self.version, self.codec, varint.write(code) + varint.write(len(digest)) + digest)

    def check(self, data: Buffer, origin: str) -> None:
        """Raises IntegrityError, which names origin and both CIDs, unless the bytes are those this CID names."""
        if not self.matches(data):
            # An identity "CID" of what was sent would carry all of it: its sha2-256 says enough.
            actual = Cid.of(data, self.codec) if self.inline is not None else self.of_same_hash(data)
            raise IntegrityError(expected=self, actual=actual, origin=origin)

    def __bytes__(self) -> bytes:
        return self.multihash if self.version == 0 else b"\x01" + varint.write(self.codec) + self.multihash

    def __str__(self) -> str:
        if self.version == 0:
            return multibase.base58btc_encode(self.multihash)
        return "b" + multibase.base32_encode(bytes(self))


def shown(text: object) -> str:
    """Foreign text for a message: quoted, escaped to ASCII, at most 80 of its letters."""
    full = str(text[:81] if isinstance(text, str) else text)
    return ascii(full[:80]) + ("…" if len(full) > 80 else "")


def _text_bytes(text: str) -> tuple[bytes, bool]:
    """The binary CID of a text, and whether the text is spelled as version 0."""
    if text.startswith("Qm"):
        return multibase.base58btc_decode(text), True
    if text.startswith("1"):
        data = multibase.base58btc_decode(text)
        if data[:1] == b"\0" and len(data) > 2 and data[1] == len(data) - 2:
            raise InvalidCid("a PeerID names a node, not content", code="unsupported_codec")
    return multibase.decode(text), False


def _check_policy(codec: int, code: int, length: int) -> None:
    known = _HASHES.get(code)
    if known is None:
        raise InvalidCid(f"hash function 0x{code:x} is not allowed", code="hash_not_allowed")
    if length > known.size:
        raise InvalidCid(
            f"a digest of {length} bytes is too large for {known.name} ({known.size})", code="digest_too_large"
        )
    if length < known.size and code != IDENTITY:
        raise InvalidCid(
            f"a digest of {length} bytes is too small for {known.name} ({known.size})", code="digest_too_small"
        )
    if codec not in _CODECS:
        named = "libp2p-key (an IPNS name or PeerID)" if codec == LIBP2P_KEY else f"0x{codec:x}"
        raise InvalidCid(f"codec {named} is not raw, dag-pb or dag-cbor: no content of ours", code="unsupported_codec")


_OF_NOTHING = frozenset(Cid.of(b"", RAW, code).multihash for code in _HASHES)
