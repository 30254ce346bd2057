"""The node's Ed25519 key: it signs records, and its PeerID names the node.

Lives in one file (PKCS8 PEM, 0600), made at the first start and never replaced: a key file that cannot be used is an
error for its owner, not a reason to become somebody else.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ipfs_accelerate_node.content.multibase import base58btc_encode
from ipfs_accelerate_node.errors import BadContent, StorageError

PUBLIC_BYTES, SIGNATURE_BYTES = 36, 64
_LIBP2P_ED25519 = bytes.fromhex("08011220")  # protobuf: key type Ed25519, 32 bytes follow
_MAX_FILE_BYTES = 4096

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
# y of all eight points of small order; each y stands for both signs of x
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


class NodeKey:
    """seed: the 32 secret bytes. public: 36 bytes, libp2p's protobuf form. peer_id: ``12D3Koo…``."""

    __slots__ = ("_private", "peer_id", "public")

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = _LIBP2P_ED25519 + self._private.public_key().public_bytes_raw()
        self.peer_id = peer_id(self.public)

    def __repr__(self) -> str:
        return f"NodeKey({self.peer_id})"

    @property
    def seed(self) -> bytes:
        return self._private.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """64 bytes, deterministic (RFC 8032)."""
        return self._private.sign(data)

    def pem(self) -> bytes:
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @classmethod
    def load_or_create(cls, path: Path) -> NodeKey:
        """The key in path; made there, durably, when nothing is. Two starts at once end with the same key.

        Raises StorageError: not a regular file, readable by others, not an Ed25519 key, or the disk refuses.
        """
        try:
            try:
                return cls._load(path)
            except FileNotFoundError:
                _create(path, NodeKey(secrets.token_bytes(32)).pem())
                return cls._load(path)
        except OSError as exc:
            raise StorageError(f"node key {path.name}: {exc.strerror or exc}") from exc

    @classmethod
    def _load(cls, path: Path) -> NodeKey:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"node key {path.name} is not a regular file")
            if status.st_mode & 0o077:
                raise StorageError(f"node key {path.name} can be read by others: chmod 600 it")
            pem = os.read(handle, _MAX_FILE_BYTES)
        finally:
            os.close(handle)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as exc:  # TypeError: an encrypted key, and we have no password
            raise StorageError(f"node key {path.name} is not a PKCS8 PEM key: restore it, or move it away") from exc
        if not isinstance(private, Ed25519PrivateKey):
            raise StorageError(f"node key {path.name} is not an Ed25519 key: restore it, or move it away")
        return cls(private.private_bytes_raw())


def _create(path: Path, pem: bytes) -> None:
    """Writes path whole or not at all; a key that another process made meanwhile stays."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(handle)
        try:
            os.link(fresh, path)  # unlike rename, never over an existing key
        except FileExistsError:
            return
    finally:
        fresh.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def peer_id(public: bytes) -> str:
    """PeerID of a 36-byte libp2p public key: base58 of its identity multihash."""
    return base58btc_encode(bytes((0x00, len(public))) + public)


def verify(public: bytes, signature: bytes, data: bytes) -> None:
    """Returns when signature is public's over data.

    Raises BadContent(bad_signature). Stricter than OpenSSL, which accepts keys of small order (one signature then fits
    many messages) and non-canonical encodings of them: both are refused here, for the key and for the signature's R.
    """
    if len(public) != PUBLIC_BYTES or not public.startswith(_LIBP2P_ED25519):
        raise _refused("the key is not an Ed25519 public key")
    if len(signature) != SIGNATURE_BYTES:
        raise _refused(f"a signature has {SIGNATURE_BYTES} bytes")
    point = public[len(_LIBP2P_ED25519) :]
    _check_point(point, "key")
    _check_point(signature[:32], "signature")
    if int.from_bytes(signature[32:], "little") >= _ORDER:
        raise _refused("the signature is not in canonical form")
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(signature, data)
    except (InvalidSignature, ValueError) as exc:
        raise _refused("it is not this key's over these bytes") from exc


def _check_point(encoded: bytes, what: str) -> None:
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise _refused(f"the {what}'s point is not in canonical form")
    if y in _SMALL_ORDER_Y:
        raise _refused(f"the {what}'s point has small order")


def _refused(reason: str) -> BadContent:
    return BadContent(f"signature refused: {reason}", code="bad_signature")
