"""Rendezvous blocks: one block for each thing that nodes look for one another about.

Whoever has something of that kind stores the block and announces it; who looks for it computes the same block and asks
the network who provides it. The block says nothing of its providers: what they have is asked of each of them.
"""

from __future__ import annotations

from typing import Literal

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.records.canonical import encode

APP = "ipfs-accelerate-node"
VERSION = 1
Kind = Literal["node", "results", "map"]


def rendezvous(kind: Kind, of: Cid | str | None) -> tuple[Cid, bytes]:
    """The block and its CID. of: a model's root for results, ``repo@commit`` for a map, None for nodes as such."""
    block = encode({"app": APP, "v": VERSION, "kind": kind, "of": of.canonical if isinstance(of, Cid) else of})
    return Cid.of(block, DAG_CBOR), block


def map_meeting(repo: str, commit: str) -> tuple[Cid, bytes]:
    """Where nodes meet that have a map of that commit. repo: as the Hub's paths have it (``datasets/…`` for those)."""
    return rendezvous("map", f"{repo}@{commit}")
