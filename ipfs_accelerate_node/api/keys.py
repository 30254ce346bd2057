"""Keys of callers: 256 random bits each, shown once, of which only the sha256 is kept.

`KeyRing` owns ``<cache>/keys.json`` (0600, replaced atomically, so that a crash leaves the old or the new ring) and, in
memory alone, the admin key of this run. Lookups compare every stored digest, in constant time each.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ipfs_accelerate_node.errors import InvalidConfig, NotFound, StorageError

SCOPES = frozenset({"infer", "peer", "pin", "metrics", "admin"})
KEY_PREFIX = "ian_"
_FILE_VERSION = 1
_MAX_FILE_BYTES = 4 << 20


class StoredKey(msgspec.Struct, frozen=True):
    """A key without the key. created: ISO 8601, UTC."""

    id: str
    scopes: tuple[str, ...]
    sha256: str
    created: str
    name: str | None = None


class _Ring(msgspec.Struct, frozen=True):
    version: int
    keys: list[StoredKey]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as its key says. An admin key has every scope."""

    key_id: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class KeyRing:
    def __init__(self, path: Path, keys: Iterable[StoredKey] = ()) -> None:
        self._path = path
        self._keys = {key.id: key for key in keys}
        self._session: dict[str, StoredKey] = {}

    @classmethod
    def open(cls, path: Path) -> KeyRing:
        """The ring in that file, an empty one if there is none. Raises InvalidConfig for a file that others may write,
        that is no regular file, or that does not parse."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):  # of the latter the store tells more
            return cls(path)
        except OSError as exc:
            raise InvalidConfig(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
        try:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise InvalidConfig(f"{path} must be a file that only its owner can read: chmod 600 {path}")
            body = os.read(handle, _MAX_FILE_BYTES)
        finally:
            os.close(handle)
        try:
            ring = msgspec.json.decode(body, type=_Ring)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise InvalidConfig(f"{path} is not a key file: {exc}; mend or remove it", path=str(path)) from exc
        if ring.version != _FILE_VERSION:
            raise InvalidConfig(f"{path} has version {ring.version}, this program reads {_FILE_VERSION}")
        return cls(path, ring.keys)

    def stored(self) -> list[StoredKey]:
        """Every key of the file, oldest first; the key of this run is not among them."""
        return list(self._keys.values())

    def create(self, scopes: Iterable[str], *, name: str | None = None) -> tuple[StoredKey, str]:
        """A new stored key and its secret, which nothing keeps. Blocks for the file. Raises StorageError."""
        key, secret = _new_key(scopes, name)
        self._write({**self._keys, key.id: key})
        return key, secret

    def remove(self, key_id: str) -> StoredKey:
        """Blocks for the file. Raises NotFound, StorageError."""
        if key_id not in self._keys:
            raise NotFound(f"no key has the id {key_id[:80]!r}", code="key_not_found")
        key = self._keys[key_id]
        self._write({k: v for k, v in self._keys.items() if k != key_id})
        return key

    def session_key(self) -> str:
        """A fresh admin key that lives as long as this object; an earlier one ends."""
        key, secret = _new_key(["admin"], "daemon.json")
        self._session = {key.id: key}
        return secret

    def identify(self, secret: str) -> Caller | None:
        """Compares with every key there is, whatever matches, so that time tells nothing."""
        digest = _digest(secret)
        found: Caller | None = None
        for key in (*self._session.values(), *self._keys.values()):
            if hmac.compare_digest(digest, key.sha256):
                found = Caller(key.id, frozenset(key.scopes))
        return found

    def _write(self, keys: dict[str, StoredKey]) -> None:
        write_private(self._path, msgspec.json.encode(_Ring(_FILE_VERSION, list(keys.values()))))
        self._keys = keys


def _new_key(scopes: Iterable[str], name: str | None) -> tuple[StoredKey, str]:
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = StoredKey(
        id=secrets.token_hex(6),
        scopes=tuple(sorted(set(scopes))),
        sha256=_digest(secret),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=name,
    )
    if not set(key.scopes) <= SCOPES:
        raise ValueError(f"unknown scope among {key.scopes}")
    return key, secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def write_private(path: Path, body: bytes) -> None:
    """Replaces a file of mode 0600 atomically and durably. Raises StorageError."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(handle)
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror}", path=str(path)) from exc
