"""Layer 4: what a model does on this machine, measured through the path of a request and signed.

A record is kept here first (``<cache>/records``, two blocks named by their CIDs), then published if that was asked for.
Mocks are never measured.
"""

from ipfs_accelerate_node.benchmarks.publish import publish
from ipfs_accelerate_node.benchmarks.run import BenchResult, bench, publish_kept
from ipfs_accelerate_node.benchmarks.shelf import Listing, RecordShelf
from ipfs_accelerate_node.benchmarks.workload import EMBEDDING, Workload, refuse_mock

__all__ = [
    "EMBEDDING",
    "BenchResult",
    "Listing",
    "RecordShelf",
    "Workload",
    "bench",
    "publish",
    "publish_kept",
    "refuse_mock",
]
