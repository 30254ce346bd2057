"""Layer 4: what a model does on this machine, measured through the path of a request and signed.

A record is kept here first (``<cache>/records``, two blocks named by their CIDs), then published if that was asked for.
Mocks are never measured.
"""

from ipfs_accelerate_node.benchmarks.machine_state import LIMITS, Limits
from ipfs_accelerate_node.benchmarks.progress import Doing, Tell
from ipfs_accelerate_node.benchmarks.publish import publish
from ipfs_accelerate_node.benchmarks.run import Bench, BenchResult, LeftOut, Wish, bench, publish_kept, refuse_mocks
from ipfs_accelerate_node.benchmarks.schema import Benchmark, read_benchmark
from ipfs_accelerate_node.benchmarks.shelf import Listing, RecordShelf
from ipfs_accelerate_node.benchmarks.workload import Workload, workload

__all__ = [
    "LIMITS",
    "Bench",
    "BenchResult",
    "Benchmark",
    "Doing",
    "LeftOut",
    "Limits",
    "Listing",
    "RecordShelf",
    "Tell",
    "Wish",
    "Workload",
    "bench",
    "publish",
    "publish_kept",
    "read_benchmark",
    "refuse_mocks",
    "workload",
]
