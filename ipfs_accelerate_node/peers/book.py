"""Whom the user named: peers of the configuration, those added while it runs, the keys that are trusted, and those that
may run models here.

What was added lies in ``<cache>/peers.json``, written whole or not at all; the configuration's own are never in it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import BadContent, BadRequest, InvalidConfig, NotFound, QuotaExceeded
from ipfs_accelerate_node.records.request import public_key
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.store import disk

log = logging.getLogger(__name__)

FILE = "peers.json"
MAX_PEERS = 256
_MAX_BYTES = 256 << 10


class _Page(msgspec.Struct, forbid_unknown_fields=True):
    """peers: origins and PeerIDs. trusted: PeerIDs whose results rank first. allowed: PeerIDs of keys."""

    peers: list[str] = []
    trusted: list[str] = []
    allowed: list[str] = []


class PeerBook:
    """Adding and removing block. configured, allowed: of the configuration, in its order. tunnels: a PeerID can be
    reached."""

    def __init__(
        self, cache: Path, configured: Sequence[str], *, own: str, tunnels: bool, allowed: Sequence[str] = ()
    ) -> None:
        self._cache = cache
        self._configured = tuple(configured)
        self._always_allowed = frozenset(allowed)
        self._own = own
        self._tunnels = tunnels
        self._lock = threading.Lock()
        self._page = self._read()

    def all(self) -> tuple[str, ...]:
        """The configured ones, then those that were added; each once, and only who can be reached."""
        named = dict.fromkeys((*self._configured, *self._page.peers))
        return tuple(peer for peer in named if self._tunnels or peer_id(peer) is None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    @property
    def added(self) -> tuple[str, ...]:
        return tuple(self._page.peers)

    @property
    def trusted(self) -> frozenset[str]:
        """PeerIDs of keys."""
        return frozenset(self._page.trusted)

    def add(self, text: str, *, trust: bool = False) -> str:
        """As it is kept. trust: the results that this PeerID's key signed rank first.

        Raises BadRequest for what is neither a URL nor a PeerID, for this node itself, and for a PeerID without
        tunnels or a URL as a key; QuotaExceeded, StorageError.
        """
        spelled = self._spelled(text)
        if trust and peer_id(spelled) is None:
            raise BadRequest("a key is trusted, and a URL is none: name its PeerID", code="bad_peer", param="trust")
        with self._lock:
            page = _copy(self._page)
            if spelled not in page.peers:
                page.peers.append(spelled)
            if trust and spelled not in page.trusted:
                page.trusted.append(spelled)
            if len(page.peers) > MAX_PEERS:
                raise QuotaExceeded(f"{MAX_PEERS} peers are enough", code="quota_exceeded")
            self._write(page)
        return spelled

    def remove(self, text: str) -> str:
        """Also takes back the trust. Raises NotFound, BadRequest for one of the configuration, StorageError."""
        spelled = self._spelled(text, anybody=True)
        with self._lock:
            if spelled not in self._page.peers:
                if spelled in self._configured:
                    raise BadRequest(f"{spelled} is in the configuration: remove it there", code="configured_peer")
                raise NotFound(f"{spelled} was not added", code="no_such_peer")
            page = _copy(self._page)
            page.peers = [peer for peer in page.peers if peer != spelled]
            page.trusted = [peer for peer in page.trusted if peer != spelled]
            self._write(page)
        return spelled

    @property
    def allowed(self) -> frozenset[str]:
        """PeerIDs of the keys that may run models here, where the user opened that at all."""
        return self._always_allowed | frozenset(self._page.allowed)

    def allow(self, text: str) -> str:
        """The PeerID, as it is kept. Raises BadRequest for what is not the PeerID of an Ed25519 key, QuotaExceeded,
        StorageError."""
        key = _key(text)
        with self._lock:
            page = _copy(self._page)
            if key not in page.allowed:
                page.allowed.append(key)
            if len(page.allowed) > MAX_PEERS:
                raise QuotaExceeded(f"{MAX_PEERS} keys are enough", code="quota_exceeded")
            self._write(page)
        return key

    def deny(self, text: str) -> str:
        """Raises NotFound, BadRequest for one of the configuration, StorageError."""
        key = _key(text)
        with self._lock:
            if key not in self._page.allowed:
                if key in self._always_allowed:
                    raise BadRequest(f"{key} is in the configuration: remove it there", code="configured_peer")
                raise NotFound(f"{key} was not allowed", code="no_such_peer")
            page = _copy(self._page)
            page.allowed.remove(key)
            self._write(page)
        return key

    def _spelled(self, text: str, *, anybody: bool = False) -> str:
        if (where := peer_id(text)) is not None:
            if not anybody and where == self._own:
                raise BadRequest("that is this node itself", code="bad_peer", param="peer")
            if not anybody and not self._tunnels:
                raise BadRequest("this node opens no tunnels, so it reaches no PeerID", code="no_tunnels", param="peer")
            return where
        try:
            return str(Origin.parse(text))
        except InvalidConfig as exc:
            raise BadRequest(f"{shown(text)} is neither a URL nor a PeerID", code="bad_peer", param="peer") from exc

    def _read(self) -> _Page:
        try:
            with disk.storing(f"peers in {self._cache}"):
                directory = disk.open_directory(self._cache)
                try:
                    data = disk.read_file(FILE, dir_fd=directory, limit_bytes=_MAX_BYTES)
                except FileNotFoundError:
                    return _Page()
                finally:
                    os.close(directory)
            page = msgspec.json.decode(data, type=_Page)
            return _Page(
                [self._spelled(peer, anybody=True) for peer in page.peers[:MAX_PEERS]],
                page.trusted[:MAX_PEERS],
                [_key(key) for key in page.allowed[:MAX_PEERS]],
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, BadRequest) as exc:
            log.warning("peers.unreadable file=%s reason=%s: left as it is, nobody was added", FILE, exc)
            return _Page()

    def _write(self, page: _Page) -> None:
        with disk.storing(f"peers in {self._cache}"):
            directory = disk.open_directory(self._cache)
            try:
                disk.write_file(FILE, msgspec.json.encode(page), dir_fd=directory)
            finally:
                os.close(directory)
        self._page = page


def _copy(page: _Page) -> _Page:
    return _Page([*page.peers], [*page.trusted], [*page.allowed])


def _key(text: str) -> str:
    """Raises BadRequest(bad_peer)."""
    key = peer_id(text) or text
    try:
        public_key(key)
    except BadContent as exc:
        raise BadRequest(
            f"{shown(text)} is not the PeerID of a node's key (12D3Koo…)", code="bad_peer", param="peer"
        ) from exc
    return key
