"""UnixFS roots from hashed leaves, the same as `ipfs add` gives under the profile unixfs-v1-2025 (IPIP-499).

CIDv1, sha2-256, raw leaves of 1 MiB, balanced trees of 1,024 links, directories sharded once their block would be
larger than 256 KiB (a block of exactly that stays whole). Nothing here sees file bytes: a tree of 100,000 leaves needs
their CIDs only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.content import hamt, unixfs
from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link
from ipfs_accelerate_node.content.names import check_tree
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.content.unixfs import Entry

CHUNK_BYTES = 1 << 20
WIDTH = 1024
HAMT_THRESHOLD = 256 * 1024
PROFILE_NAME = "unixfs-v1-2025"

Nodes = tuple[tuple[Cid, bytes], ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """chunk_bytes: per leaf, used by whoever cuts the file. width: links per file node. hamt_threshold: bytes of the
    largest directory block that stays unsharded."""

    chunk_bytes: int = CHUNK_BYTES
    width: int = WIDTH
    hamt_threshold: int = HAMT_THRESHOLD


UNIXFS_V1_2025 = Profile()


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """nodes: every node block, children first, none for a single leaf. dag_bytes: leaves and nodes together, the Tsize
    of a link to it."""

    cid: Cid
    size: int
    leaves: tuple[Leaf, ...]
    nodes: Nodes
    dag_bytes: int


@dataclass(frozen=True, slots=True)
class BuiltDirectory:
    """nodes: this directory's own blocks, children first. tsize: cumulative bytes, all below included."""

    cid: Cid
    tsize: int
    nodes: Nodes


@dataclass(frozen=True, slots=True)
class BuiltTree:
    """nodes: every node block of files and directories, each once, children first."""

    plan: ModelPlan
    nodes: Nodes


def file_dag(leaves: Sequence[Leaf], profile: Profile = UNIXFS_V1_2025) -> BuiltFile:
    """The balanced tree over raw leaves in file order; without leaves, the empty file (one raw leaf of length 0).

    Raises ValueError for leaves that are not raw or leave a gap.
    """
    own = tuple(leaves) or (Leaf(Cid.of(b""), 0, 0),)
    size = _checked_size(own)
    nodes: list[tuple[Cid, bytes]] = []
    level = [(leaf.cid, leaf.length, leaf.length) for leaf in own]
    while len(level) > 1:
        parents = []
        for start in range(0, len(level), profile.width):
            parts = level[start : start + profile.width]
            block, length = unixfs.file_node(parts)
            cid = Cid.of(block, DAG_PB)
            nodes.append((cid, block))
            parents.append((cid, length, len(block) + sum(tsize for _, _, tsize in parts)))
        level = parents
    cid, _, dag_bytes = level[0]
    return BuiltFile(cid, size, own, _distinct(nodes), dag_bytes)


def _checked_size(leaves: Sequence[Leaf]) -> int:
    end = 0
    for leaf in leaves:
        if leaf.offset != end or leaf.cid.codec != RAW:
            raise ValueError(f"leaf {leaf.cid} at {leaf.offset}: a raw leaf at {end} is needed")
        end += leaf.length
    return end


def directory_dag(entries: Sequence[Entry], profile: Profile = UNIXFS_V1_2025) -> BuiltDirectory:
    """One directory over entries with distinct names, in any order. Raises UnsafeContent (code invalid_path) where two
    names cannot stand in one sharded directory.

    The profile's rule, whatever the order of adding. Kubo 0.43.1 forgets it for directories that come to lie a few
    hundred bytes above the threshold only because the sizes of subdirectories are filled in last: there its result
    depends on chance (the order of a Go map).
    """
    links = [Link(entry.cid, entry.name.encode(), entry.tsize) for entry in entries]
    block = unixfs.directory_node(links)
    if len(block) > profile.hamt_threshold:
        cid, tsize, shards = hamt.build(links)
        return BuiltDirectory(cid, tsize, tuple(shards))
    cid = Cid.of(block, DAG_PB)
    return BuiltDirectory(cid, len(block) + sum(link.tsize for link in links), ((cid, block),))


def tree_dag(
    files: Mapping[str, BuiltFile], directories: Iterable[str] = (), profile: Profile = UNIXFS_V1_2025
) -> BuiltTree:
    """A directory tree, bottom up: the root that `ipfs add -r` gives. Not for hidden files: what is passed is in it.

    files: relative "/"-separated path to file. directories: further ones, also empty; parents are implied. Raises
    UnsafeContent (code invalid_path) for names that are unsafe or that some file system would confuse.
    """
    listed = list(directories)
    check_tree(files, listed)
    folders = _with_parents([*listed, *(_parent(path) for path in files)])
    children: dict[str, list[Entry]] = {folder: [] for folder in folders}
    nodes: list[tuple[Cid, bytes]] = []
    for path, file in files.items():
        nodes += file.nodes
        children[_parent(path)].append(Entry(_base(path), file.cid, file.dag_bytes))
    for folder in sorted(folders, key=lambda folder: folder.count("/"), reverse=True):
        if folder:
            built = directory_dag(children[folder], profile)
            nodes += built.nodes
            children[_parent(folder)].append(Entry(_base(folder), built.cid, built.tsize))
    root = directory_dag(children[""], profile)
    nodes += root.nodes
    plans = tuple(FilePlan(path, files[path].cid, files[path].size, files[path].leaves) for path in sorted(files))
    return BuiltTree(ModelPlan(root.cid, plans, tuple(sorted(folders - {""}))), _distinct(nodes))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _with_parents(folders: Iterable[str]) -> set[str]:
    found = {""}
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = _parent(folder)
    return found


def _distinct(nodes: Iterable[tuple[Cid, bytes]]) -> Nodes:
    return tuple(dict(nodes).items())
