"""Layer 3: where bytes come from, one class per kind of source, one small protocol (`source.Source`)."""

from ipfs_accelerate_node.sources.gateway import GatewaySource
from ipfs_accelerate_node.sources.kubo_source import KuboSource, LateKubo
from ipfs_accelerate_node.sources.peer import PeerSource
from ipfs_accelerate_node.sources.source import LACKS_BLOCK, MAX_BLOCK_BYTES, Source

__all__ = ["LACKS_BLOCK", "MAX_BLOCK_BYTES", "GatewaySource", "KuboSource", "LateKubo", "PeerSource", "Source"]
