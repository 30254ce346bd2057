"""How a file was imported, read off its DAG: the options under which `add` builds the same one again. Pure.

Only the leaves' sizes and the links of a few nodes are looked at. What is inferred is a guess until the root that
comes out equals the root that was asked for; the caller compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.content.plan import FilePlan
from ipfs_accelerate_node.content.unixfs import links

WIDTH = 1024  # of the profile unixfs-v1-2025; as good as any where one node holds all links
_CHUNK_LIMIT = 2 * 1024 * 1024 - 256  # what Kubo's chunkers take
_BUZHASH = (128 << 10, 512 << 10)
_RABIN = ((256 << 10) // 3, (256 << 10) * 3 // 2)

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Import:
    """options: for `add`, without those that say what to do with the result. fixed: the leaves are certain to come
    out the same, whatever the tree above them (chunks of one size)."""

    options: Options
    fixed: bool


def imports(file: FilePlan, nodes: Mapping[Cid, bytes]) -> list[Import]:
    """Likely ways this file was imported, best first; none when no way is known (or a leaf is not a raw block).

    nodes: node blocks of the DAG by canonical CID; those of the file must be there.
    """
    if any(leaf.prefix or leaf.suffix for leaf in file.leaves) or not file.leaves:
        return []
    shape = _shape(file.cid.canonical, nodes)
    common = (
        ("cid-version", str(file.cid.version if file.cid.codec == DAG_PB else 1)),
        ("raw-leaves", "true"),
        ("hash", _hash_name(file)),
        *_inlining(file),
    )
    return [
        Import((*common, ("chunker", chunker), *shape), chunker.startswith("size-"))
        for chunker in _chunkers([leaf.length for leaf in file.leaves])
    ]


def _chunkers(lengths: list[int]) -> list[str]:
    *full, last = lengths
    first = full[0] if full else max(last, 1)
    if first > _CHUNK_LIMIT:
        return []
    if all(length == first for length in full) and last <= first:
        return [f"size-{first}"]
    low, high = min(full), max(lengths)
    return [
        name for name, bounds in (("buzhash", _BUZHASH), ("rabin", _RABIN)) if bounds[0] <= low and high <= bounds[1]
    ]


def _shape(root: Cid, nodes: Mapping[Cid, bytes]) -> Options:
    """Layout and width. Balanced trees have leaves at one depth only; a trickle node has leaves first, then deeper
    and deeper trees."""
    if root.codec != DAG_PB or root not in nodes:
        return (("max-file-links", str(WIDTH)),)
    below = [cid.canonical for cid in links(nodes[root], DAG_PB)]
    direct = next((i for i, cid in enumerate(below) if cid in nodes), len(below))
    if direct == len(
        below
    ):  # all leaves: any width that holds them, and both layouts agree unless there is one leaf only
        trickle, width = len(below) == 1, max(WIDTH, len(below))
    elif direct:
        trickle, width = True, direct
    else:
        trickle, width = False, len(links(nodes[below[0]], DAG_PB))
    return (("max-file-links", str(width)), *((("trickle", "true"),) if trickle else ()))


def _hash_name(file: FilePlan) -> str:
    cids = (file.cid, *(leaf.cid for leaf in file.leaves))
    return next((cid.hash_name for cid in cids if cid.inline is None), "sha2-256")


def _inlining(file: FilePlan) -> Options:
    inline = [leaf.length for leaf in file.leaves if leaf.cid.inline is not None]
    return (("inline", "true"), ("inline-limit", str(max(32, *inline)))) if inline else ()
