"""Layer 4: from a root or a Hub reference to a verified, committed model."""

from ipfs_accelerate_node.fetch.engine import Fetcher
from ipfs_accelerate_node.fetch.outcome import Fetched, Progress

__all__ = ["Fetched", "Fetcher", "Progress"]
