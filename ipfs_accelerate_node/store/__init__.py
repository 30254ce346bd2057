"""Layer 2: verified model files on disk. `Store` is the only door; everything here blocks, so call it from a thread.

Who owns what, under the cache directory:

- ``blobs/<file cid>``: one verified file, 0400, never changed; equal bytes under two file CIDs are one inode.
- ``models/<root>/``: hard links to blobs, the loadable directory. ``models/<root>.plan``: its DAG (node blocks,
  leaves, and sha256 and git-sha1 of each file that is here). ``models/<root>.json``: names, pin, visibility,
  provenance; written last, so a model exists if and only if this file does.
- ``partial/``: files still being fetched, each with the record of what is durable; copies being ingested.
- ``unnamed/``: files still being brought of which only the Hub's oid is known, not the CID.
- ``quarantine/``: what turned out not to be what its name says.
- ``index.sqlite``: all of the above, searchable. Derived: losing it costs time only.

A crash loses at most what was not yet synced of a partial file. `rebuild` puts everything else right at the next start.
"""

from ipfs_accelerate_node.store.batch import commit_all
from ipfs_accelerate_node.store.ingest import Ingested, hash_directory, ingest
from ipfs_accelerate_node.store.partial import PartialFile
from ipfs_accelerate_node.store.quota import Reservation
from ipfs_accelerate_node.store.store import Store
from ipfs_accelerate_node.store.types import (
    CorruptFile,
    GcReport,
    LeafPlace,
    Provenance,
    SourceFailure,
    SourceShare,
    StoredFile,
    StoredModel,
    VerifyReport,
)

__all__ = [
    "CorruptFile",
    "GcReport",
    "Ingested",
    "LeafPlace",
    "PartialFile",
    "Provenance",
    "Reservation",
    "SourceFailure",
    "SourceShare",
    "Store",
    "StoredFile",
    "StoredModel",
    "VerifyReport",
    "commit_all",
    "hash_directory",
    "ingest",
]
