"""Layer 2: the IPFS network, which is a Kubo daemon: a private child, a daemon of the user's, or none at all."""

from ipfs_accelerate_node.kubo.binary import find_binary
from ipfs_accelerate_node.kubo.calls import Feature
from ipfs_accelerate_node.kubo.client import KuboClient
from ipfs_accelerate_node.kubo.seeding import Seeded, is_seeded, kept_roots, let_go, seed, unseed
from ipfs_accelerate_node.kubo.service import KuboService

__all__ = [
    "Feature",
    "KuboClient",
    "KuboService",
    "Seeded",
    "find_binary",
    "is_seeded",
    "kept_roots",
    "let_go",
    "seed",
    "unseed",
]
