"""Where a root may be asked for: what the configuration names, or the one source that a caller names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.config_values import peer_id
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadRequest
from ipfs_accelerate_node.fetch.experience import abilities, by_record
from ipfs_accelerate_node.kubo import KuboClient, KuboService
from ipfs_accelerate_node.sources import GatewaySource, LateKubo, PeerSource, Source
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.store import Store

Discover = Callable[[Cid], AsyncGenerator[Source, None]]


class Origins:
    """discover: nodes that announced a root, as they are found; by_peer_id: one of them by its PeerID. Both are None on
    a node without tunnels. peers: URLs and PeerIDs that are asked as well; the configured ones, unless set."""

    def __init__(
        self,
        config: Config,
        store: Store,
        kubo: KuboService,
        ready: Callable[[], Awaitable[KuboClient]],
        *,
        discover: Discover | None = None,
        by_peer_id: Callable[[str], Source] | None = None,
    ) -> None:
        self.peers: Iterable[str] = config.peers
        self._config = config
        self._store = store
        self._kubo = kubo
        self._ready = ready
        self._discover = discover
        self._by_peer_id = by_peer_id

    def check(self, named: str | None) -> None:
        """Raises BadRequest for a source that this node cannot ask."""
        if named is None:
            return
        if named == "kubo" and self._kubo.state == "off":
            raise BadRequest(f"Kubo is off: {self._kubo.reason}", code="kubo_off", param="source")
        if peer_id(named) is not None and self._by_peer_id is None:
            raise BadRequest("this node opens no tunnels, so it reaches no PeerID", code="no_tunnels", param="source")

    def open(self, stack: AsyncExitStack, named: str | None) -> list[Source]:
        """Peers first (they give whole ranges), then Kubo, then gateways, and those of bad record last; all are closed
        with the stack. named: only that one (a URL, a PeerID or "kubo")."""
        config = self._config
        wanted: list[tuple[str, str]] = [(url, "peer") for url in self.peers]
        wanted += [("kubo", "kubo")] if self._kubo.state != "off" else []
        wanted += [(url, "gateway") for url in config.gateways]
        if named is not None:
            spelled = peer_id(named) or named
            wanted = [w for w in wanted if w[0] == spelled] or [(named, "kubo" if named == "kubo" else "gateway")]
        sources = []
        for text, kind in wanted:
            source = self._source(text, kind)
            stack.push_async_callback(source.aclose)
            sources.append(source)
        return by_record(self._store, sources)

    def discovery(self, named: str | None) -> Discover | None:
        """Nobody is looked for when a source is named."""
        return self._discover if named is None else None

    def _source(self, text: str, kind: str) -> Source:
        config = self._config
        first_byte_s, stall_s = config.first_byte_timeout_s, config.stall_timeout_s
        if kind == "kubo":
            return LateKubo(self._ready, timeout_s=4 * first_byte_s)
        if (peer := peer_id(text)) is not None and self._by_peer_id is not None:
            return self._by_peer_id(peer)
        if kind == "peer":
            return PeerSource(text, first_byte_timeout_s=first_byte_s, stall_timeout_s=stall_s)
        return GatewaySource(
            text,
            first_byte_timeout_s=first_byte_s,
            stall_timeout_s=stall_s,
            abilities=abilities(self._store, str(Origin.parse(text))),
        )
