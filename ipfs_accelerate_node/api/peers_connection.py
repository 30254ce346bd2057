"""Connections to the peers' listener, and what each peer may have of it.

Kubo begins a connection with one line, the PeerID that libp2p authenticated; HTTP follows. So limits are each peer's
own, and one that asks too much takes nothing from the others. Without that line it is a program of this machine.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

from aiohttp import web

from ipfs_accelerate_node.api.listener import Connection, Refusal
from ipfs_accelerate_node.errors import Overloaded

KNOWN_PEERS = 1024  # whose requests are counted

_PEER_LINE = re.compile(rb"[1-9A-HJ-NP-Za-km-z]{40,64}\r?")
_LINE_BYTES = 66


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: of all. Of one peer: connections_of_peer, and burst requests that come back at requests_per_s (as
    many as it takes to carry blocks of 1 MiB one by one faster than any line)."""

    connections: int = 256
    connections_of_peer: int = 32
    requests_per_s: float = 500
    burst: int = 1000


class Allowances:
    """What each peer has taken: connections it has now, requests of the last seconds (a bucket that fills again)."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._connections: Counter[str] = Counter()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, when)

    def accept(self, http: web.Server) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return PeerConnection(http, self) if len(http.connections) < self._limits.connections else Refusal()

    def enters(self, peer: str) -> bool:
        if self._connections[peer] >= self._limits.connections_of_peer:
            return False
        self._connections[peer] += 1
        return True

    def leaves(self, peer: str) -> None:
        self._connections[peer] -= 1
        if not self._connections[peer]:
            del self._connections[peer]

    def take(self, peer: str) -> None:
        """One request. Raises Overloaded (rate_limited)."""
        now = time.monotonic()
        left, when = self._buckets.pop(peer, (float(self._limits.burst), now))
        left = min(self._limits.burst, left + (now - when) * self._limits.requests_per_s)
        self._buckets[peer] = (max(0.0, left - 1), now)
        while len(self._buckets) > KNOWN_PEERS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Overloaded("too many requests of one peer", code="rate_limited", retry_after_s=1)


class PeerConnection(Connection):
    """peer: PeerID as Kubo told it, "" for a program of this machine; known once the first line is here."""

    __slots__ = ("_allowances", "_begun", "_entered", "peer")

    def __init__(self, http: web.Server, allowances: Allowances) -> None:
        super().__init__(http)
        self._allowances = allowances
        self._begun: bytes | None = b""  # None: the first line is behind us
        self._entered = False
        self.peer = ""

    def data_received(self, data: bytes) -> None:
        if self._begun is None:
            super().data_received(data)
            return
        begun = self._begun + data
        line, ended, rest = begun.partition(b"\n")
        if not ended and len(begun) < _LINE_BYTES and _may_be_peer(begun):
            self._begun = begun
            return
        self._begun = None
        if ended and _PEER_LINE.fullmatch(line):
            self.peer = line.strip().decode("ascii")
            begun = rest
        self._entered = self._allowances.enters(self.peer)
        if not self._entered:
            self._refuse()
        elif begun:
            super().data_received(begun)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._entered:
            self._entered = False
            self._allowances.leaves(self.peer)
        super().connection_lost(exc)

    def _refuse(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            Refusal().connection_made(self.transport)


def _may_be_peer(begun: bytes) -> bool:
    return begun.isalnum()
